"""Run tasks of MTEB, the Massive Text Embedding Benchmark, whose audio part is called MAEB, with CLaMP 3.

    pip install "mteb>=2.26,<3"                      # Python 3.11 or newer
    python mteb_eval.py --list                       # the tasks of text and audio
    python mteb_eval.py GTZANGenre RavdessZeroshot --variant saas
A whole benchmark, with the results in a folder of your choice:
    python mteb_eval.py "MAEB(v1)" --variant saas --output results
MTEB downloads the data from the Hugging Face hub and writes its result files to
OUTPUT/results/MODEL/REVISION/TASK.json, where REVISION identifies the weights; tasks that are already done with the
same weights are skipped. Failed tasks are listed, and so are inputs without a feature, which count as zeros (exit
code 1). Audio files are read by PyAV; some tasks decode theirs before they pass them to a model, and need
`pip install torchcodec`, if there is a version for your PyTorch.
"""

from pathlib import Path

from clamp3.cli.options import add_model_options, add_raw_options, script_parser
from clamp3.cli.output import print_issues, print_table

TEXT_AND_AUDIO = {"text", "audio"}


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="name of a task or a benchmark of MTEB")
    parser.add_argument("--list", action="store_true", help="list the audio tasks that can be run, and run none")
    parser.add_argument(
        "--output", type=Path, default=Path("results"), help="folder of the results; default: %(default)s"
    )
    add_model_options(parser, ("saas", "c2", "tiny"))
    add_raw_options(parser)
    args = parser.parse_args()
    if bool(args.tasks) == args.list:
        parser.error("give the names of tasks, or --list")

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.errors import UserError
    from clamp3.io.reports import FileIssue

    try:
        from clamp3.tasks.mteb_encoder import MtebEncoder
    except ImportError as error:
        raise UserError(str(error)) from error
    import mteb

    if args.list:
        found = (task.metadata for task in mteb.get_tasks(modalities=["audio"], exclude_superseded=False))
        runnable = [task for task in found if set(task.modalities) <= TEXT_AND_AUDIO]
        print_table(("task", "type", "category"), ((task.name, task.type, task.category) for task in runnable))
        return 0
    tasks = [task for name in args.tasks for task in tasks_named(name)]
    embedder = embedder_loader(args)()
    # Fail now, and not in the middle of a benchmark, where these are not available.
    modalities = {modality for task in tasks for modality in task.modalities}
    if "text" in modalities:
        _ = embedder.tokenizer
    if "audio" in modalities:
        _ = embedder.audio_encoder
    model = MtebEncoder(embedder)
    print(f"{model.mteb_model_meta.name}: {embedder.weights}, revision {model.mteb_model_meta.revision}")
    cache = mteb.ResultCache(args.output)
    result = mteb.evaluate(model, tasks, cache=cache, raise_error=False)
    scores = ((done.task_name, done.task.metadata.main_score, float(done.get_score())) for done in result.task_results)
    print_table(("task", "measure", "score"), scores)
    print(f"written to {cache.get_task_result_path('TASK', model.mteb_model_meta).parent}")
    failed = [FileIssue(error.task_name, error.exception) for error in result.exceptions or []]
    print_issues("failed tasks", failed, most=None)
    print_issues("without a feature, so zeros", model.failures)
    print_issues("damaged or very short, but read", model.repairs)
    return 1 if failed or model.failures else 0


def tasks_named(name: str) -> list:
    """The task, or the tasks of the benchmark, of that name. Raises UserError for one with other modalities."""
    import mteb

    from clamp3.errors import UserError

    if name in {alias for known in mteb.get_benchmarks() for alias in (known.name, *(known.aliases or ()))}:
        tasks = list(mteb.get_benchmark(name).tasks)
    else:
        try:
            tasks = [mteb.get_task(name)]
        except KeyError as error:
            advice = error.args[0].removeprefix("KeyError: ")
            raise UserError(f"MTEB has no task or benchmark {name}: {advice} --list shows the tasks") from None
    for task in tasks:
        if not set(task.modalities) <= TEXT_AND_AUDIO:
            raise UserError(f"{task.metadata.name} has {', '.join(task.modalities)}; this model reads text and audio")
    return tasks
