"""The ablation on many processes or machines: one papermill command a run, for a shell, Slurm or Kubernetes."""

import shlex
from collections.abc import Sequence

from ..config import TrainConfig
from ..errors import closest
from ..models.networks import parse_variant
from .ablation import AblationConfig


def commands(config: AblationConfig, where: str = "shell") -> str:
    """The grid as one papermill command a run, for many processes or machines that share `runs/`.

    Args:
        config: the parameters.
        where: "shell", one run after the other; "slurm", an array job for `sbatch`; "kubernetes", an indexed job for
            `kubectl apply -f -`, whose image and volume have to be filled in.

    Raises:
        ValueError: another `where`.
    """
    if where not in _SCRIPTS:
        raise ValueError(f"where={where!r}: {closest(where, _SCRIPTS)}")
    default = TrainConfig()
    given = {name: value for name, value in config.common().items() if value != getattr(default, name)}
    given["snapshots"] = default.snapshots  # the notebook keeps some, the ablation none
    command = (
        'papermill notebooks/01_train.ipynb "runs/$1-$2-$3.ipynb" -p model "$1" -p normalizer "$2" -p seed "$3"'
        + "".join(f" -p {name} {shlex.quote(str(value))}" for name, value in given.items())
    )
    rows = [(*parse_variant(cell.variant), str(cell.seed)) for cell in config.grid()]
    return _SCRIPTS[where](rows, command)


def _shell(rows: Sequence[tuple[str, ...]], command: str) -> str:
    lines = "\n".join(" ".join(row) for row in rows)
    # Without </dev/null the first run would read the list of the others.
    return f"while read -r run; do\n  set -- $run\n  {command} </dev/null\ndone <<END\n{lines}\nEND"


def _indexed(rows: Sequence[tuple[str, ...]], command: str, index: str) -> list[str]:
    lines = " ".join(f'"{" ".join(row)}"' for row in rows)
    return [f"runs=({lines})", f"set -- ${{runs[${index}]}}", command]


def _slurm(rows: Sequence[tuple[str, ...]], command: str) -> str:
    head = ["#!/bin/bash", f"#SBATCH --array=0-{len(rows) - 1} --gpus=1 --time=1:00:00"]
    return "\n".join(head + _indexed(rows, command, "SLURM_ARRAY_TASK_ID"))


def _kubernetes(rows: Sequence[tuple[str, ...]], command: str) -> str:
    script = "\n".join(" " * 12 + line for line in _indexed(rows, command, "JOB_COMPLETION_INDEX"))
    return f"""apiVersion: batch/v1
kind: Job
metadata: {{name: ltpa-ablation}}
spec:
  completionMode: Indexed
  completions: {len(rows)}
  parallelizm: 4
  template:
    spec:
      restartPolicy: OnFailure
      containers:
        - name: train
          image: IMAGE  # one with this repository in /ltpa and its requirements installed
          workingDir: /ltpa
          command: [bash, -c]
          args:
          - |
{script}
          resources: {{limits: {{nvidia.com/gpu: 1}}}}
          volumeMounts: [{{name: runs, mountPath: /ltpa/runs}}]
      volumes: [{{name: runs, persistentVolumeClaim: {{claimName: CLAIM}}}}]"""


_SCRIPTS = {"shell": _shell, "slurm": _slurm, "kubernetes": _kubernetes}
