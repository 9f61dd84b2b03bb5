"""Entry of the processes below the bench: a server of trials, a trial, a check of own code, scores, measuring."""

import sys

from selectbench.cores import die_with_parent

if __name__ == "__main__":
    die_with_parent()  # first of all: what is imported takes seconds
    role, *rest = sys.argv[1:]
    if role == "calibrate":
        from selectbench.worker.runtime import calibrate

        calibrate(rest[0], [int(size) for size in rest[1:]])
    elif role == "node":
        from selectbench.data.prepared import cache_root
        from selectbench.record.environment import code_sha256
        from selectbench.worker.runtime import measure_node

        measure_node(int(rest[0]), int(rest[1]), cache_root(), code_sha256())
    elif role == "own_code":
        from selectbench.worker.runtime import call_problems, write_answer

        write_answer(call_problems, *rest)
    elif role == "score":
        from selectbench.worker.evaluation import requested_scores
        from selectbench.worker.runtime import write_answer

        write_answer(requested_scores, *rest)
    else:
        from selectbench.worker.server import Server, run_order

        if role == "server":
            Server(int(rest[0]), modules=rest[1:]).serve()
        else:
            assert role == "trial"
            run_order(rest[2], int(rest[1]), server=int(rest[0]))
