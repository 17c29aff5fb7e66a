"""What all tests rely on."""

import signal

# Started in the background, a process ignores SIGINT, and so would the commands that tests start
# and interrupt; a handler here becomes the default action in them.
signal.signal(signal.SIGINT, signal.default_int_handler)
