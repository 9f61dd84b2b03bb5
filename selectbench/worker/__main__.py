"""Entry of the two processes below the bench: the server that starts trials, and a trial on its own."""

import sys

from selectbench.worker.server import Server, run_order

if __name__ == "__main__":
    role, descriptor, *rest = sys.argv[1:]
    if role == "server":
        Server(int(descriptor), modules=rest).serve()
    else:
        assert role == "trial"
        run_order(rest[0], int(descriptor))
