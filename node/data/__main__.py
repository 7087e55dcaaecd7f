"""`python -m node.data DESCRIPTOR`: started by a core, with its end of the pipe."""

import os
import sys

from node.data.process import main

# Threads that are still at work hold up nothing: see `node.data.process`.
code = main(int(sys.argv[1]))
sys.stderr.flush()
os._exit(code)
