"use strict";
// Draws the figures of the page in the reader's colours, light or dark.
(() => {
  const figures = JSON.parse(document.getElementById("data").textContent).figures;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function themed(layout) {
    const ink = colour("--ink"), line = colour("--line"), panel = colour("--panel");
    const result = Object.assign({}, layout, {
      autosize: true,
      paper_bgcolor: panel,
      plot_bgcolor: panel,
      font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: colour("--page"), bordercolor: line, font: { color: ink } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: ink },
    });
    for (const axis of ["xaxis", "yaxis"]) {
      if (layout[axis]) {
        result[axis] = Object.assign({ gridcolor: line, linecolor: line, zerolinecolor: line }, layout[axis]);
      }
    }
    return result;
  }

  function traces(data) {
    // Error bars and outlines follow the ink; everything else has its own colours.
    const ink = colour("--ink"), panel = colour("--panel");
    return data.map((trace) => {
      const copy = Object.assign({}, trace);
      for (const bars of ["error_x", "error_y"]) {
        if (trace[bars]) copy[bars] = Object.assign({ color: ink, thickness: 1.2, width: 3 }, trace[bars]);
      }
      if (trace.type === "icicle") {
        copy.marker = Object.assign({}, trace.marker, { line: { color: panel, width: 1 } });
        copy.root = { color: colour("--line") };
      }
      return copy;
    });
  }

  function draw() {
    figures.forEach((figure, number) => {
      const element = document.getElementById("chart-" + number);
      Plotly.react(element, traces(figure.data), themed(figure.layout), config);
    });
  }

  draw();
  figures.forEach((figure, number) => {
    document.getElementById("chart-" + number).on("plotly_click", (event) => {
      const reason = event.points[0].customdata;
      if (typeof reason === "string") {
        document.dispatchEvent(new CustomEvent("vtx-reason", { detail: reason }));
      }
    });
  });
  dark.addEventListener("change", draw);
  document.documentElement.dataset.charts = "drawn";
})();
