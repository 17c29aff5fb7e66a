"""The stepper on a terminal."""

from __future__ import annotations

from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static, TabbedContent, TabPane

from vtx.errors import InputError
from vtx.hypervisor.recording import Frame, Kind, Recording
from vtx.lab.profile import Profile
from vtx.stepper import views
from vtx.stepper.breakpoints import Breakpoint, parse_breakpoint

__all__ = ["Stepper"]

_TABS = {"exit": "Exit", "vmcs": "VMCS", "walk": "Walk", "costs": "Costs"}
_HELP = """\
 n, right   next frame             p, left    frame before
 e          next VM exit           E          VM exit before
 c          on to a breakpoint     C          back to a breakpoint
 b          set a breakpoint: cpuid, exit 48, 0x200000, line 12
 d          delete all breakpoints
 g          go to a frame          home, end  first and last frame
 1 2 3 4    exit, VMCS, walk, costs
 q          leave
Any key closes this."""


class _Ask(ModalScreen[str]):
    """Asks for a line of text."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss('')", "cancel")]
    DEFAULT_CSS = "_Ask { align: center middle; } _Ask Input { width: 60; }"

    def __init__(self, prompt: str) -> None:
        super().__init__()
        self._prompt = prompt

    def compose(self) -> ComposeResult:
        """Show the line."""
        yield Input(placeholder=self._prompt)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Hand the text back."""
        self.dismiss(event.value)


class _Help(ModalScreen[None]):
    """Shows the keys."""

    DEFAULT_CSS = (
        "_Help { align: center middle; } _Help Static { width: 70; border: round $accent; }"
    )

    def compose(self) -> ComposeResult:
        """Show the text."""
        yield Static(_HELP, markup=False)

    def on_key(self) -> None:
        """Go away."""
        self.dismiss(None)


class Stepper(App[None]):
    """Looks at a recording, frame by frame, forwards and backwards.

    Parameters
    ----------
    recording : Recording
        What is looked at.
    profile : Profile
        Whose prices the costs are given in.

    Attributes
    ----------
    position : int
        Index of the frame that is shown.
    breakpoints : list of Breakpoint
    """

    TITLE = "vtx step"
    CSS = """
    #title { height: 1; background: $primary; color: $text; }
    #upper { height: 12; }
    #listing { width: 1fr; }
    #registers { width: 50; }
    #tabs { height: 1fr; }
    #message { height: 1; color: $warning; }
    TabPane { padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n,right", "move(1)", "next"),
        Binding("p,left", "move(-1)", "back"),
        Binding("e", "exit(False)", "next exit"),
        Binding("E", "exit(True)", "exit before", show=False),
        Binding("c", "go_on(False)", "continue"),
        Binding("C", "go_on(True)", "back to breakpoint", show=False),
        Binding("b", "ask_breakpoint", "break"),
        Binding("d", "delete", "delete", show=False),
        Binding("g", "ask_frame", "go to", show=False),
        Binding("home", "show(0)", "first", show=False),
        Binding("end", "show(-1)", "last", show=False),
        *(
            Binding(str(number), f"tab('{name}')", name, show=False)
            for number, name in enumerate(_TABS, 1)
        ),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, recording: Recording, profile: Profile) -> None:
        super().__init__()
        self.recording = recording
        self.profile = profile
        self.position = 0
        self.breakpoints: list[Breakpoint] = []

    def compose(self) -> ComposeResult:
        """Lay the screen out: title, listing beside registers, tabs, message, keys."""
        yield Static(id="title", markup=False)
        with Horizontal(id="upper"):
            yield Static(id="listing", markup=False)
            yield Static(id="registers", markup=False)
        with TabbedContent(initial="exit", id="tabs"):
            for name, label in _TABS.items():
                with TabPane(label, id=name), VerticalScroll():
                    yield Static(id=f"{name}-text", markup=False)
        yield Static(id="message", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Show the first frame."""
        if not self.recording.complete:
            self.say("the run is longer than what was recorded")
        self.refresh_views()

    @property
    def frame(self) -> Frame:
        """The frame that is shown."""
        return self.recording.frames[self.position]

    def say(self, text: str) -> None:
        """Show a message until the next move."""
        self.query_one("#message", Static).update(text)

    def refresh_views(self) -> None:
        """Show the current frame in all views."""
        frame = self.frame
        before = self.recording.frames[self.position - 1] if self.position else None
        shown = {
            "title": [views.title(self.recording, frame)],
            "listing": views.listing(self.recording, frame, 12),
            "registers": views.registers(frame, before),
            "exit-text": views.exit_details(frame),
            "vmcs-text": views.vmcs_changes(frame),
            "walk-text": views.walk(frame),
            "costs-text": views.costs(self.recording, frame, self.profile),
        }
        for name, rows in shown.items():
            self.query_one(f"#{name}", Static).update("\n".join(rows))

    def action_show(self, index: int) -> None:
        """Show the frame with this index; -1 is the last."""
        last = len(self.recording.frames) - 1
        self.position = last if index < 0 else min(index, last)
        self.say("")
        self.refresh_views()

    def action_move(self, by: int) -> None:
        """Go so many frames forwards or backwards."""
        to = self.position + by
        if 0 <= to < len(self.recording.frames):
            self.action_show(to)
        else:
            self.say("this is the end" if by > 0 else "this is the beginning")

    def action_exit(self, backwards: bool) -> None:
        """Go to the next VM exit, or to the one before."""
        found = self.recording.find(
            self.position, lambda frame: frame.kind is Kind.EXIT, backwards=backwards
        )
        if found is None:
            self.say("there is no VM exit before" if backwards else "there is no further VM exit")
        else:
            self.action_show(found)

    def action_go_on(self, backwards: bool) -> None:
        """Go to where a breakpoint is hit."""
        if not self.breakpoints:
            self.say("there is no breakpoint: b sets one")
            return
        found = self.recording.find(
            self.position,
            lambda frame: any(point.hits(frame) for point in self.breakpoints),
            backwards=backwards,
        )
        if found is None:
            self.action_show(0 if backwards else -1)
            self.say("no breakpoint is hit on the way")
            return
        self.action_show(found)
        hit = next(point for point in self.breakpoints if point.hits(self.frame))
        self.say(f"breakpoint {hit.text}")

    def action_ask_breakpoint(self) -> None:
        """Ask for a breakpoint."""
        self.push_screen(_Ask("cpuid, exit 48, 0x200000 or line 12"), self.add_breakpoint)

    def add_breakpoint(self, text: str | None) -> None:
        """Set a breakpoint, or say why not."""
        if not text:
            return
        try:
            self.breakpoints.append(parse_breakpoint(text))
        except InputError as error:
            self.say(str(error))
            return
        self.say(f"breakpoints: {', '.join(point.text for point in self.breakpoints)}")

    def action_delete(self) -> None:
        """Delete all breakpoints."""
        self.breakpoints.clear()
        self.say("there are no breakpoints")

    def action_ask_frame(self) -> None:
        """Ask for the number of a frame."""
        self.push_screen(_Ask("number of a frame"), self._go_to)

    def _go_to(self, text: str | None) -> None:
        if text and text.isdecimal():
            self.action_show(int(text))
        elif text:
            self.say(f"{text!r} is no number of a frame")

    def action_tab(self, name: str) -> None:
        """Show a tab."""
        self.query_one("#tabs", TabbedContent).active = name

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(_Help())
