"use strict";
// The list of exits: only the rows in sight are in the document, however many there are.
(() => {
  const started = performance.now();
  const data = JSON.parse(document.getElementById("data").textContent).exits;
  if (!data) return;
  const ROW = 24, MARGIN = 8;
  const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, u8: BigUint64Array, f8: Float64Array };
  const byId = (name) => document.getElementById(name);
  const list = byId("list"), rows = byId("rows"), detail = byId("detail");
  const reasonFilter = byId("reason-filter"), order = byId("order"), address = byId("address");

  function unpacked(packed) {
    const text = atob(packed.data), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new ARRAYS[packed.type](bytes.buffer);
  }

  const columns = new Map(data.columns.map((column) => [column.key, Object.assign({ array: unpacked(column) }, column)]));
  const layouts = new Map(data.words.map((word) => [word.column, unpacked(word.layouts)]));
  let order_ = new Uint32Array(0), active = 0;

  function text(key, row) {
    const column = columns.get(key), value = column.array[row];
    if (column.values) return column.values[value];
    if (Number.isNaN(value)) return "";
    return value.toLocaleString("en", { minimumFractionDigits: column.digits || 0, maximumFractionDigits: column.digits || 0 });
  }

  function make(name, content, kind) {
    const element = document.createElement(name);
    if (content !== undefined) element.textContent = content;
    if (kind) element.className = kind;
    return element;
  }

  // ---- Which rows, in which order ----------------------------------------------------------------

  function select(keep) {
    const reasons = columns.get("reason"), wanted = reasonFilter.value, find = address.value.trim().toLowerCase();
    const wantedIndex = wanted === "" ? -1 : reasons.values.indexOf(wanted);
    const searched = find === "" ? [] : data.addresses.map((key) => {
      const column = columns.get(key);
      return [column.array, column.values.map((value) => value.includes(find))];
    });
    let count = 0;
    const found = new Uint32Array(data.count);
    for (let row = 0; row < data.count; row++) {
      if (wantedIndex >= 0 && reasons.array[row] !== wantedIndex) continue;
      if (searched.length && !searched.some(([array, hit]) => hit[array[row]])) continue;
      found[count++] = row;
    }
    order_ = found.slice(0, count);
    const chosen = data.orders[order.selectedIndex];
    if (chosen.key) {
      const array = columns.get(chosen.key).array;
      const value = (row) => (Number.isNaN(array[row]) ? -Infinity : array[row]);
      order_.sort((a, b) => value(b) - value(a) || a - b);
    }
    const shown = count.toLocaleString("en"), all = data.count.toLocaleString("en");
    byId("count").textContent = count === data.count ? all + " exits" : shown + " of " + all + " exits";
    rows.style.height = count * ROW + "px";
    const at = keep === undefined ? -1 : order_.indexOf(keep);
    active = Math.max(at, 0);
    list.scrollTop = active * ROW - (keep === undefined ? 0 : list.clientHeight / 2);
    draw();
  }

  // ---- The rows in sight -------------------------------------------------------------------------

  const template = data.shown.map((key) => columns.get(key).width).join(" ");

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - MARGIN);
    const last = Math.min(order_.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + MARGIN);
    const drawn = document.createDocumentFragment();
    for (let place = first; place < last; place++) drawn.append(line(place));
    rows.replaceChildren(drawn);
    if (active >= first && active < last) list.setAttribute("aria-activedescendant", "row-" + active);
    else list.removeAttribute("aria-activedescendant");
  }

  function line(place) {
    const row = order_[place], element = make("div", undefined, place === active ? "row active" : "row");
    element.id = "row-" + place;
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", String(place === active));
    element.setAttribute("aria-setsize", String(order_.length));
    element.setAttribute("aria-posinset", String(place + 1));
    element.style.top = place * ROW + "px";
    element.style.gridTemplateColumns = template;
    for (const key of data.shown) element.append(make("span", text(key, row), columns.get(key).figures ? "n" : ""));
    return element;
  }

  function move(place) {
    if (!order_.length) return;
    active = Math.min(Math.max(place, 0), order_.length - 1);
    const top = active * ROW, bottom = top + ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
    draw();
  }

  // ---- One exit ----------------------------------------------------------------------------------

  function table(headings, lines) {
    const element = make("table"), head = make("tr"), body = make("tbody");
    for (const heading of headings) {
      const cell = make("th", heading);
      cell.scope = "col";
      head.append(cell);
    }
    const top = make("thead");
    top.append(head);
    for (const [kind, ...cells] of lines) {
      const one = make("tr", undefined, kind);
      for (const cell of cells) one.append(make("td", cell, /^0x|^\d/.test(cell) ? "mono" : ""));
      body.append(one);
    }
    element.append(top, body);
    return element;
  }

  function decoded(layout, word) {
    const value = BigInt(word), lines = [];
    for (const range of layout.ranges) {
      const mask = (1n << BigInt(range.high - range.low + 1)) - 1n;
      const bits = (value >> BigInt(range.low)) & mask;
      if (!range.named && bits === 0n) continue;
      const meaning = range.values ? range.values[bits.toString()] || "not defined" : range.meaning;
      const shown = range.high === range.low ? bits.toString() : "0x" + bits.toString(16);
      lines.push([bits === 0n ? "zero" : "set", range.label, range.name, shown, meaning]);
    }
    return lines;
  }

  function wordParts(row) {
    const parts = [];
    for (const word of data.words) {
      const value = text(word.column, row), layout = data.layouts[layouts.get(word.column)[row]];
      if (value === "" || (value === "0x0" && word.skipZero)) continue;
      const heading = make("h4", word.title + " ");
      heading.append(make("code", value));
      parts.push(heading);
      if (layout) {
        parts.push(table(["bits", "name", "value", "meaning"], decoded(layout, value)));
        parts.push(make("p", layout.title + ". Source: " + layout.source, "note"));
      } else if (word.column === "qualification") {
        parts.push(make("p", "This exit has no layout of its qualification.", "note"));
      }
    }
    return parts;
  }

  function changeParts(row) {
    if (!data.changes) return [];
    const changes = data.changes.rows[row], parts = [make("h4", "VMCS differences")];
    if (!changes) {
      parts.push(make("p", data.changes.note, "note"));
      return parts;
    }
    if (!changes.length) parts.push(make("p", "No field changed between VM entry and the next.", "note"));
    for (const [handler, title] of [[0, "by the VM exit"], [1, "by the handler, until the next VM entry"]]) {
      const lines = changes.filter((change) => change[1] === handler)
        .map(([field, , before, after]) => ["", data.changes.fields[field], before, after]);
      if (lines.length) {
        parts.push(make("p", title, "note"));
        parts.push(table(["field", "before", "after"], lines));
      }
    }
    return parts;
  }

  function show(row) {
    const reason = data.reasons[columns.get("reason").array[row]];
    const heading = make("h3", reason.name + (reason.number === null ? "" : " (exit reason " + reason.number + ")"));
    const facts = data.columns.filter((column) => column.key !== "reason" && text(column.key, row) !== "")
      .map((column) => ["", column.title, text(column.key, row)]);
    const parts = [heading];
    if (reason.title !== reason.name) parts.push(make("p", reason.title + (reason.meaning ? ": " + reason.meaning : "") + ".", "note"));
    parts.push(...wordParts(row), make("h4", "This exit"), table(["", ""], facts), ...changeParts(row));
    detail.replaceChildren(...parts);
    detail.dataset.row = String(row);
    detail.scrollTop = 0;
  }

  function open() {
    if (!order_.length) return;
    show(order_[active]);
    detail.focus();
  }

  // ---- Keyboard and mouse ------------------------------------------------------------------------

  const page = () => Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const KEYS = {
    ArrowDown: () => move(active + 1),
    ArrowUp: () => move(active - 1),
    PageDown: () => move(active + page()),
    PageUp: () => move(active - page()),
    Home: () => move(0),
    End: () => move(order_.length - 1),
    Enter: open,
    " ": open,
  };

  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  detail.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      detail.replaceChildren(make("p", "Choose an exit.", "note"));
      delete detail.dataset.row;
      list.focus();
      return;
    }
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      move(active + step);
      show(order_[active]);
    }
  });
  list.addEventListener("scroll", draw, { passive: true });
  rows.addEventListener("click", (event) => {
    const line_ = event.target.closest(".row");
    if (!line_) return;
    move(Number(line_.id.slice(4)));
    show(order_[active]);
  });
  reasonFilter.addEventListener("change", () => select());
  order.addEventListener("change", () => select(order_[active]));
  address.addEventListener("input", () => select());
  window.addEventListener("resize", draw);
  document.addEventListener("vtx-reason", (event) => {
    if (!columns.get("reason").values.includes(event.detail)) return;
    reasonFilter.value = event.detail;
    select();
    byId("exits").scrollIntoView();
    list.focus({ preventScroll: true });
  });

  // ---- The beginning -----------------------------------------------------------------------------

  for (const name of columns.get("reason").values) {
    const option = make("option", name);
    option.value = name;
    reasonFilter.append(option);
  }
  for (const entry of data.orders) order.append(make("option", entry.title));
  const head = byId("list-head");
  head.style.gridTemplateColumns = template;
  for (const key of data.shown) head.append(make("span", columns.get(key).title, columns.get(key).figures ? "n" : ""));
  select();
  document.documentElement.dataset.ready = (performance.now() - started).toFixed(1);
})();
