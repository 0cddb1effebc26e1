"""One network in DeepSparse, in its own process, run by the Python of DeepSparse's environment.

    python deepsparse_process.py MODEL.onnx INPUT.npy OUTPUT.npy BATCH THREADS

Writes the outputs for the input, prints the version once it is ready, and for each line "N" of its standard input the
seconds of N passes, as JSON. Between two lines it waits.
"""

import json
import sys
import time

import deepsparse
import numpy as np


def main() -> None:
    model, given, found, batch, threads = sys.argv[1:]
    engine = deepsparse.Engine(model, batch_size=int(batch), num_cores=int(threads))
    x = [np.load(given)]
    np.save(found, engine.run(x)[0])
    print(json.dumps(deepsparse.__version__), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            engine.run(x, val_inp=False)
            seconds.append(time.perf_counter() - started)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
