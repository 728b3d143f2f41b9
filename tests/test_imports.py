"""The layer picture of architecture.md, read off the source: who may import what, how, and that setup.cfg knows it."""

from __future__ import annotations

import ast
import configparser
import functools
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import unclip

ROOT = Path(__file__).parents[1]
PACKAGES = ("unclip", "prior", "decoder", "upsamplers")
STAGES = {"prior", "decoder", "upsamplers"}
LAYERS = [
    {"unclip.types", "unclip.config", "unclip.randomness", "unclip.sampling", "unclip.trees"}
    | {"unclip.conditions", "unclip.nn", "unclip.diffusion", "unclip.checks", "unclip.contracts", "unclip.deprecation"},
    {"unclip.training", "unclip.data", "unclip.clip", "unclip.checkpoint", "unclip.metrics"}
    | {"unclip.offload", "unclip.files", "unclip.images", "unclip.weights", "unclip.building", "unclip.hub", "unclip.index"}
    | {"unclip.progress"},
    {"unclip.convert"} | STAGES,
    {"unclip.runs", "unclip.pipelines", "unclip.editing"},
    {"unclip.cli"},
]
OPTIONAL = ("parquet", "remote", "tensorboard", "wandb", "experiments")  # extras, imported where they are used
KERNEL_LIBRARIES = {"torch", "einops", "numpy", "jaxtyping", "msgspec"}
DISTRIBUTIONS = {"PIL": "pillow", "open_clip": "open_clip_torch"}  # import names that differ


class Import(NamedTuple):
    file: str  # "unclip/clip/encoder.py"
    target: str  # "unclip.types", dotted, a module as far as one can tell
    level: int  # 0 = absolute
    name: str  # imported from the target, or ""

    def __str__(self) -> str:
        return f"{self.file} imports {self.target} {self.name}".strip()


@functools.cache
def imports(folder: str) -> tuple[Import, ...]:
    found: list[Import] = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [Import(file, alias.name, 0, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = Path(file).parts[: len(Path(file).parts) - node.level] if node.level else ()
                module = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:  # `from unclip import checkpoint` means a module
                    inner = module.replace(".", "/") + "/" + alias.name
                    is_module = (ROOT / f"{inner}.py").exists() or (ROOT / inner / "__init__.py").exists()
                    target, name = (f"{module}.{alias.name}", "") if is_module else (module, alias.name)
                    found.append(Import(file, target, node.level, name))
    return tuple(found)


def ours() -> list[Import]:
    return [i for folder in PACKAGES for i in imports(folder)]


def top(name: str) -> str:
    return name.partition(".")[0]


def unit(module: str) -> str:
    """What the picture speaks of: `unclip.clip` for anything inside it, `prior`, or `unclip` for the table of names."""
    return ".".join(module.split(".")[:2]) if top(module) == "unclip" else top(module)


def layer(module: str) -> int:
    return next(k for k, units in enumerate(LAYERS) if unit(module) in units)


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def folder_of(module: str) -> str:
    path = module.replace(".", "/")
    return path if (ROOT / path).is_dir() else path.rpartition("/")[0]


def third_party(found: tuple[Import, ...] | list[Import], own: tuple[str, ...] = PACKAGES) -> Iterator[Import]:
    for i in found:
        if i.level == 0 and top(i.target) not in {*own, *sys.stdlib_module_names}:
            yield i


def test_every_file_has_its_place_in_the_picture() -> None:
    placed = set.union(*LAYERS)
    files = [p.relative_to(ROOT).as_posix() for folder in PACKAGES for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 40
    assert [f for f in files if unit(module_of(f)) not in placed] == ["unclip/__init__.py"]


def test_no_file_imports_from_above() -> None:
    inside = [i for i in ours() if top(i.target) in PACKAGES and i.file != "unclip/__init__.py" and i.target != "unclip"]
    assert len(inside) > 100
    assert [str(i) for i in inside if layer(i.target) > layer(module_of(i.file))] == []
    above = {"experiments", "benchmarks", "tests"}
    assert [str(i) for i in ours() if top(i.target) in above] == []


def test_scripts_import_names_that_exist() -> None:
    """Nothing else imports them all, and a type checker that ignores missing imports does not see it."""
    scripts = [i for folder in ("experiments", "benchmarks") for i in imports(folder)]
    inside = {(i.file, i.target, i.name) for i in scripts if top(i.target) in (*PACKAGES, "experiments", "benchmarks")}
    assert len(inside) > 100
    missing = [i for i in sorted(inside) if i[2] and not hasattr(importlib.import_module(i[1]), i[2])]
    assert missing == []


def test_there_are_no_circles_type_only_ones_included() -> None:
    files = [p.relative_to(ROOT).as_posix() for folder in PACKAGES for p in (ROOT / folder).rglob("*.py")]
    modules = {module_of(file) for file in files} - {"unclip"}
    edges = {module: {i.target for i in ours() if module_of(i.file) == module} & modules - {module} for module in modules}
    while True:  # what nothing is left to import of, and what nobody left imports, is in no circle
        imported = set.union(set(), *edges.values())
        ends = [module for module in edges if not edges[module] & edges.keys() or module not in imported]
        if not ends:
            break
        for module in ends:
            del edges[module]
    assert sorted(edges) == []


def test_stages_know_nothing_of_each_other_and_the_pipeline_knows_no_stage() -> None:
    for stage in STAGES:
        others = (STAGES - {stage}) | {"unclip.convert"}
        assert [str(i) for i in imports(stage) if unit(i.target) in others] == []
    assembling = [i for i in imports("unclip") if unit(module_of(i.file)) in LAYERS[3]]
    assert [str(i) for i in assembling if unit(i.target) in LAYERS[2]] == []


def test_the_table_of_names_is_used_by_checkpoint_alone() -> None:
    """The one exception: `checkpoint` looks classes up in `unclip.PUBLIC`.  Others may read the version."""
    users = [i for i in ours() if i.target == "unclip" and i.name != "__version__"]
    assert [(i.file, i.name) for i in users] == [("unclip/checkpoint.py", "")]
    runtime = [i.target for i in imports("unclip") if i.file == "unclip/__init__.py" and top(i.target) not in PACKAGES]
    assert sorted(set(runtime)) == ["importlib", "typing"]


def test_the_kernel_stands_on_few_libraries() -> None:
    kernel = [i for i in imports("unclip") if unit(module_of(i.file)) in LAYERS[0]]
    assert {top(i.target) for i in third_party(kernel)} <= KERNEL_LIBRARIES


def test_imports_are_relative_inside_a_folder_and_absolute_across() -> None:
    wrong = []
    for i in ours():
        if top(i.target) in PACKAGES and i.file != "unclip/__init__.py":
            same = folder_of(i.target) == Path(i.file).parent.as_posix()
            alone = i.target == "unclip" and i.name == ""  # `import unclip` has no relative form
            if i.level != (1 if same and not alone else 0):
                wrong.append(f"{i} with {'.' * i.level or 'no'} dots")
    assert wrong == []


def test_experiments_know_no_benchmark_and_nothing_touches_the_search_path() -> None:
    """Scripts are run as `python -m ...` from the repository's root; benchmarks may use experiments, not they them."""
    assert [str(i) for i in imports("experiments") if top(i.target) == "benchmarks"] == []
    files = [path for folder in (*PACKAGES, "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    touching = [path.relative_to(ROOT).as_posix() for path in files if "sys.path" in path.read_text()]
    assert touching == ["unclip/runs/recipes.py"]  # where `unclip train NAME` finds the recipes of the folder it is called in


def requirements(*extras: str) -> set[str]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split("\n")
    for extra in extras:
        lines += config["options.extras_require"][extra].split("\n")
    return {re.split(r"[<>=!\[; ]", line)[0].lower().replace("-", "_") for line in lines if line and "%" not in line}


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (PACKAGES, OPTIONAL),
        (("experiments",), ("emoji", "experiments")),
        (("tests", "benchmarks"), ("emoji", *OPTIONAL, "test")),
    ],
)
def test_whatever_is_imported_stands_in_setup_cfg(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    local = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"experiments", "benchmarks", "tests"}
    own = (*PACKAGES, *(local if folders != PACKAGES else ()))
    needed = {top(i.target) for folder in folders for i in third_party(imports(folder), own)}
    needed -= {"dalle2_pytorch"}  # lives in an environment of its own (benchmarks/dalle2_pytorch/environment.py)
    assert "torch" in needed
    assert {DISTRIBUTIONS.get(name, name).lower() for name in needed} - requirements(*extras) == set()


def test_the_block_for_tools_equals_the_table() -> None:
    tree = ast.parse((ROOT / "unclip" / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    written = {alias.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert written == unclip.PUBLIC
    assert set(unclip.PUBLIC) < set(dir(unclip)) and unclip.__all__ == ["__version__", *unclip.PUBLIC]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="'Decodr'; it has .*Decoder"):
        _ = unclip.Decodr
    with pytest.raises(ImportError):
        from unclip import Nothing  # noqa: F401


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def test_importing_unclip_imports_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import unclip; print(*sorted(set(sys.modules) - before))"
    loaded = {top(name) for name in python(program).split()} - sys.stdlib_module_names
    assert loaded == {"unclip"}


def test_a_stage_can_be_the_first_import_and_no_import_brings_what_it_does_not_need() -> None:
    program = """
import json, sys
import prior
lonely = [m for m in sys.modules if m in ("decoder", "upsamplers", "unclip.pipelines.unclip", "unclip.clip")]
import unclip
kinds = {name: getattr(unclip, name).__name__ for name in unclip.PUBLIC}
lazy = ("open_clip", "torchvision", "accelerate", "huggingface_hub", "typer", "matplotlib", "diffusers", "transformers")
print(json.dumps([lonely, kinds, [m for m in lazy if m in sys.modules]]))
"""
    lonely, kinds, heavy = json.loads(python(program))
    assert lonely == [] and heavy == []
    assert kinds == {name: name for name in unclip.PUBLIC}
