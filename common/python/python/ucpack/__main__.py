"""`python -m ucpack` is the command `ucpack`."""

from ._command import main

main()
