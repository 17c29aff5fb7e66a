"""Reports: a run or a recording as a page of HTML, as a trace for Perfetto, as a picture.

What they are made of comes from :mod:`vtx.lab` and :mod:`vtx.hypervisor`; nothing is computed here
that a table does not show, too. The libraries behind them are optional and imported when a report
is made: ``vtx[html]``, ``vtx[plot]``, ``vtx[pandas]``.
"""
