"""SIGKILL at random moments: is a run that is killed and resumed the same, bit for bit, as one that is not?

    python benchmarks/kills.py --kills 100 --output benchmarks/results/kills.json

Every run is a process of its own that evaluates a Gaussian in two dimensions point by point, with a pause in each call
so that kills land in the likelihood as well as in the fits and in the writing of checkpoints. It is killed and resumed
until it is done, or has been killed twelve times and is let finish; runs of further seeds follow until the number of
kills is reached. Counted are the likelihood calls that were made twice, and every file in
the folder that does not belong there.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import nsflow

PAUSE = 0.5e-3  # seconds of one call
LONGEST = 2.5  # seconds after which a process is killed at the latest
MOST = 12  # kills of one run


def worker(folder, output, seed):
    """One process: run, and save the result."""
    import numpyro.distributions as dist

    import nsflow.checkpoint.checkpoint

    nsflow.checkpoint.checkpoint.INTERVAL = 0.1
    calls = os.open(f"{output}.calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def log_likelihood(p):
        os.write(calls, b".")
        time.sleep(PAUSE)
        return -0.5 * (p["x"] ** 2 + p["y"] ** 2) / 0.3**2

    prior = nsflow.Prior({"x": dist.Uniform(-5, 5), "y": dist.Uniform(-5, 5)})
    print("ready", flush=True)
    checkpoint = None if folder == "none" else folder
    result = nsflow.run(nsflow.HostLikelihood(log_likelihood), prior, seed=seed, ess=500, checkpoint=checkpoint)
    result.save(output)


def start(folder, output, seed):
    arguments = [sys.executable, __file__, "--worker", str(folder), str(output), "--seed", str(seed)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process):
    process.stdout.close()
    if process.wait() != 0:
        raise RuntimeError(f"a run ended with exit code {process.returncode}")


def one_run(root, seed, num_kills, rng):
    """A run that is not killed, and one that is; what differs between them."""
    whole, folder, killed = root / f"whole-{seed}", root / f"run-{seed}.nsflow", root / f"killed-{seed}"
    finish(start("none", whole, seed))
    kills = 0
    while kills < num_kills:
        process = start(folder, killed, seed)
        try:
            process.wait(rng.uniform(0, LONGEST))
            break  # it was done
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            process.stdout.close()
            kills += 1
    finish(start(folder, killed, seed))
    calls = [Path(f"{path}.calls").stat().st_size for path in (whole, killed)]
    same = nsflow.load(whole) == nsflow.load(killed)  # all but the times of the steps
    same &= whole.with_suffix(".csv").read_bytes() == killed.with_suffix(".csv").read_bytes()
    strays = [p.name for p in folder.iterdir() if not re.fullmatch(r"manifest|lock|(segment|journal)-\d+", p.name)]
    strays += [p.name for p in folder.iterdir() if p.name.startswith("journal")][1:]
    strays += [p.name for p in root.iterdir() if p.name.startswith(".")]
    return {
        "seed": seed,
        "kills": kills,
        "identical": same,
        "stray_files": strays,
        "calls": calls[0],
        "calls_with_kills": calls[1],
        "bytes": sum(p.stat().st_size for p in folder.iterdir()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "RESULT"), help="be one of the processes")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker, arguments.seed)
        return
    rng, rows = np.random.default_rng(arguments.seed), []
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as cache:
        # Without it most kills would hit a compiler.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
        while (done := sum(row["kills"] for row in rows)) < arguments.kills:
            seed = arguments.seed + len(rows)
            rows.append(one_run(Path(root), seed, min(MOST, arguments.kills - done), rng))
            print(json.dumps(rows[-1]), flush=True)
            summary = {
                "kills": sum(row["kills"] for row in rows),
                "runs": len(rows),
                "identical": sum(row["identical"] for row in rows),
                "stray_files": sum(len(row["stray_files"]) for row in rows),
            }
            if arguments.output:
                arguments.output.write_text(json.dumps({**summary, "each": rows}, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
