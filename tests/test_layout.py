"""The library's rooms import one way, along the way of the data, and `import clamp3` stays cheap."""

import ast
import subprocess
import sys

from conftest import CODE

LIBRARY = CODE / "clamp3"
# A module imports what stands before it, and of its own room what does not import it in turn.
ORDER = (
    *("errors", "sizes", "modalities", "io", "distributed", "formats", "inputs", "models", "audio", "features"),
    *("search", "training", "tasks", "web", "cli", "__main__"),
)
PRINTING = ("print", "tqdm.write", "sys.stdout.write", "sys.stderr.write")
FORMER_NAMES = ("retrieval", "mteb_adapter")  # modules that import the present ones, for code that knows the old ones


def modules() -> dict[str, set[str]]:
    """What each module of the library imports of it, wherever it does so."""
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        name = ".".join(path.relative_to(CODE).with_suffix("").parts).removesuffix(".__init__")
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        found[name] = {other for other in imported if other.split(".")[0] == "clamp3"}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def test_rooms_import_one_way():
    wrong = [
        f"{module} imports {other}"
        for module, imported in modules().items()
        if module != "clamp3" and room(module) not in FORMER_NAMES
        for other in imported - {"clamp3"}
        if ORDER.index(room(other)) > ORDER.index(room(module))
    ]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    graph = modules()
    graph["clamp3"] = set()  # loads its names when they are first asked for

    def reached(module: str) -> set[str]:
        seen, waiting = set(), [module]
        while waiting:
            for other in graph.get(waiting.pop(), set()) - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    assert not [module for module in graph if module in reached(module)]


def test_the_library_knows_nothing_of_the_scripts():
    scripts = {path.stem for path in CODE.glob("*.py")}
    for path in LIBRARY.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert not names & scripts, path


def test_the_library_prints_nothing():
    """Commands print: the library returns, raises, calls back or logs."""
    printing = [
        f"{path.relative_to(LIBRARY)}:{node.lineno}"
        for path in sorted(LIBRARY.rglob("*.py"))
        if path.relative_to(LIBRARY).parts[0] != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in PRINTING
    ]
    assert not printing


def test_a_bare_import_is_cheap_and_shows_the_public_names():
    script = (
        "import sys; before = set(sys.modules); import clamp3; new = set(sys.modules) - before; print(*dir(clamp3)); "
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules) and len(new) < 60, sorted(new)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=CODE, capture_output=True, text=True, check=True)
    assert {"Embedder", "top_k", "__version__"} <= set(done.stdout.split())


def test_training_extras_are_imported_where_they_are_used_alone():
    """An embedder in a service does not bring wandb and matplotlib."""
    for path in sorted(LIBRARY.rglob("*.py")):
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        names = {node.module or "" for node in statements if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names}
        assert not {name.split(".")[0] for name in names} & {"wandb", "matplotlib"}, path
