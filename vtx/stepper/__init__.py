"""The terminal stepper: a recorded run, looked at frame by frame.

:mod:`vtx.stepper.views` says what is shown, as plain lines; :mod:`vtx.stepper.breakpoints` where to
stop; :mod:`vtx.stepper.app` is the terminal program, the only part that needs `textual`.
"""

from __future__ import annotations
