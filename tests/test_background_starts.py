"""Every task and thread of ours starts through experts.background, where its unexpected end is dealt with."""

import ast

from tests.source import ROOT, modules

STARTS = {
    "create_task", "ensure_future", "run_coroutine_threadsafe", "TaskGroup", "Thread", "Timer", "start_new_thread",
}  # fmt: skip
ALLOWED = "experts.background"


def starts(tree: ast.AST) -> list[int]:
    """Lines that start a task or thread of their own."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in STARTS:
                lines.append(node.lineno)
        elif isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Thread") for base in node.bases):
            lines.append(node.lineno)
    return lines


def test_the_walk_finds_every_spelling() -> None:
    code = (
        "loop.create_task(x)\nensure_future(x)\nThread(target=x)\nthreading.Timer(1, x)\nclass A(Thread): pass\nok(x)"
    )
    assert sorted(starts(ast.parse(code))) == [1, 2, 3, 4, 5]


def test_tasks_and_threads_start_in_one_place() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for module, path in modules()
        if module != ALLOWED
        for line in starts(ast.parse(path.read_text()))
    ]
    assert not wrong, "start these through experts.background"
