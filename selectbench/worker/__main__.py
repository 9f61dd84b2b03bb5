"""Entry of the processes below the bench: the server that starts trials, a trial on its own, a calibration."""

import sys

if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "calibrate":
        from selectbench.worker.calibration import calibrate

        calibrate(rest[0], [int(size) for size in rest[1:]])
    else:
        from selectbench.worker.server import Server, run_order

        if role == "server":
            Server(int(rest[0]), modules=rest[1:]).serve()
        else:
            assert role == "trial"
            run_order(rest[1], int(rest[0]))
