"""What a run leaves on disk: the run folder, its metrics and its evaluations. No torch, no recipe schema."""

from malora_cli.results.digest import Digest, LogSteps, MeanConflict, Thinned, newer
from malora_cli.results.evaluation import EvalResult, Scores, TaskEval
from malora_cli.results.files import (
    file_sha256,
    free_bytes,
    read_json,
    remembered_sha256,
    why_unwritable,
    write_json,
    write_text,
)
from malora_cli.results.geometry import ExpertGeometry, ProjectionGeometry, Sides
from malora_cli.results.lock import check_not_written, writing
from malora_cli.results.manifest import Manifest, NotedRows, RunStatus, TaskData
from malora_cli.results.metrics import (
    ConflictEvent,
    EvalEvent,
    Event,
    GradientConflict,
    MetricsLog,
    TaskLoss,
    TrainEvent,
)
from malora_cli.results.once import made_once
from malora_cli.results.run import (
    RunRecord,
    checkpoint_name,
    checkpoints_in,
    find_run,
    runs_under,
    utc_now,
)
from malora_cli.results.seesaw import Change, Lows, Slip, change, changes, imbalance, measured, stopped

__all__ = [
    "Change",
    "ConflictEvent",
    "Digest",
    "EvalEvent",
    "EvalResult",
    "Event",
    "ExpertGeometry",
    "GradientConflict",
    "LogSteps",
    "Lows",
    "Manifest",
    "MeanConflict",
    "MetricsLog",
    "NotedRows",
    "ProjectionGeometry",
    "RunRecord",
    "RunStatus",
    "Scores",
    "Sides",
    "Slip",
    "TaskData",
    "TaskEval",
    "TaskLoss",
    "Thinned",
    "TrainEvent",
    "change",
    "changes",
    "check_not_written",
    "checkpoint_name",
    "checkpoints_in",
    "file_sha256",
    "find_run",
    "free_bytes",
    "imbalance",
    "made_once",
    "measured",
    "newer",
    "read_json",
    "remembered_sha256",
    "runs_under",
    "stopped",
    "utc_now",
    "why_unwritable",
    "write_json",
    "write_text",
    "writing",
]
