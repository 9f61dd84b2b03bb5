"""Training a tokenizer is native code that may take long: Ctrl-C must not wait for it."""

import signal
import subprocess
import sys

import pytest
from processes import start

from selectbench.data.tokenizer import interruptible

SCRIPT = """
from selectbench.data.tokenizer import train_bpe
def documents():
    print("training", flush=True)
    yield "x" * 3_000_000  # one word: merging it takes minutes
train_bpe(documents(), 512)
"""


def test_ctrl_c_ends_the_training_of_a_tokenizer():
    process = start([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors


def test_what_fails_inside_fails_outside():
    def fail():
        raise OSError("no such text")

    with pytest.raises(OSError, match="no such text"):
        interruptible(fail)
