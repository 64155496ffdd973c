"""How right a reconstruction is, as geometry: metrics, tasks, a baseline, and the run over scenes; NumPy only.

In use:

    from mapengine.calibration.evaluation import evaluate
    from mapengine.runtime import Engine

    evaluation = evaluate(Engine.load("build/engine"), 200)
    print(evaluation.to_json()["results"]["image-only-4"]["metrics"]["depth_abs_rel"])
"""

from .baseline import ConstantDepth
from .evaluate import DEFAULT_SCENES, DEFAULT_SIZE, Evaluation, Predictor, TaskResult, evaluate
from .report import markdown_table
from .retention import TaskMetrics, retention, retention_errors
from .rgbd import RgbdScene, load_rgbd
from .scoring import METRICS, SceneScore, aggregate, score
from .tasks import HELD_OUT_SEED, TASKS, Task, select_tasks, task_views
from .truth import EvaluationScene, Truth

__all__ = [
    "DEFAULT_SCENES",
    "DEFAULT_SIZE",
    "HELD_OUT_SEED",
    "METRICS",
    "TASKS",
    "ConstantDepth",
    "Evaluation",
    "EvaluationScene",
    "Predictor",
    "RgbdScene",
    "SceneScore",
    "Task",
    "TaskMetrics",
    "TaskResult",
    "Truth",
    "aggregate",
    "evaluate",
    "load_rgbd",
    "markdown_table",
    "retention",
    "retention_errors",
    "score",
    "select_tasks",
    "task_views",
]
