"""What people see of every verb: messages, progress bars, errors. Drawn with rich on a terminal, plain lines elsewhere.

On a terminal, bars stay below the messages. In pipes and files a bar is a line every few seconds, without escape codes.
`NO_COLOR` switches colours off; `TERM=dumb` counts as no terminal.
"""

from ijepa_ds.terminal.bar import Bar, duration, track
from ijepa_ds.terminal.screen import begin, emphasised, error, has_bars, is_terminal, line, route, stop_bars

__all__ = ["Bar", "begin", "duration", "emphasised", "error", "has_bars", "is_terminal", "line", "route", "stop_bars", "track"]
