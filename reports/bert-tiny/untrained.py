"""Write the network of `bert-tiny` as it is before its first step: what "untrained" means in the report.

python reports/bert-tiny/untrained.py CORPUS SEED OUT
"""

import sys
from dataclasses import replace
from pathlib import Path

from largebatch.recipes.bert import bert_tiny


def main(corpus: str, seed: int, out: Path) -> None:
    """Write model and tokenizer to `out`."""
    run = bert_tiny()
    task = replace(run.task, corpus=corpus)
    task.export(task.build_model(seed), out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
