"""What plugs in, and who makes what: parts by their names, their versions, and a digest of the source behind a result.

A part is a function, or a dataclass whose fields are its settings and whose instances are called like one. It is built
in (below), in a file of the user's (`my/file.py:name`), or an installed entry point of the group `iar_study.KIND`.
Settings follow the name: `my/file.py:Focal,gamma=3`.

What a built-in part made is named by its version: raise that when a change makes other numbers of the same settings.
What it made before is then left, and what depends on it is made anew; nothing else is. A test of each maker's output on
a small input says when to. Version 1 is in no name, so that what was made before there were versions is found. What a
part of a user's made is named by the code of its file, so that an edit makes it anew.

While one tries ideas in the package itself, no version is raised. So what is made remembers the digest of its makers'
source, and a run tells where that is another one now; `run --again` makes these anew, under names of their own.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from iar_study.errors import InputError, nearest

KINDS = {
    "clustering": ("points", "n_clusters", "seed", "progress"),
    "order": ("vectors",),
    "generator": ("config", "vocab_size", "n_classes", "grid"),
    "loss": ("logits", "targets", "boundaries", "codebook", "weight"),
    "extractor": ("images", "device"),
    "metric": ("reference", "features"),
    "data": (),
    "executor": ("trials", "compute"),
    "tokenizer": (),
}
"""Kind of part -> what it is called with; docs/extending.md says what each returns."""

CLUSTERING = "codebook/clustering.py"
STRATEGIES = ("_balanced", "_greedy", "_plain", "_blocks", "_random", "_agglomerative", "_agglomerative_equal")
"""The functions of `CLUSTERING` that are strategies; all else there is every strategy's."""

LLOYD = ("codebook/balanced_kmeans.py", "codebook/assignment.py", "codebook/augmenting_paths.py")
ORDERS = ("codebook/ordering.py", "codebook/norms.py", "codebook/kernels.py")
LOOKS = (
    *("evaluation/classifier.py", "evaluation/evaluators.py"),
    *("tokenizers/vq.py", "tokenizers/patch_vq.py", "tokenizers/given.py"),
    "pipeline/making.py:decode",
)
"""What pictures are made and seen by."""


@dataclass(frozen=True)
class Maker:
    """What of the package makes something; named "KIND NAME" where it is a part that others may stand in for.

    source : its files, below the package. FILE:NAME is one function or class of a file, FILE:-A,B all but these.
    where : of a part, MODULE:NAME of what is called; "" where its place in the package is fixed.
    traits : "equal sizes" (a clustering with n_clusters that divide the codes), "draws" (from its seed), "path" (a
        path follows its name), "maybe a path".
    """

    version: int
    source: tuple[str, ...]
    where: str = ""
    traits: frozenset[str] = frozenset()


def _strategy(*functions: str, source: tuple[str, ...] = (), traits: Iterable[str] = ()) -> Maker:
    """Return the maker of a strategy's clusters: what all share, its own functions, the first first, other files."""
    others = ",".join(name for name in STRATEGIES if name not in functions)
    files = (f"{CLUSTERING}:-{others}", "codebook/norms.py", "codebook/kernels.py", *source)
    return Maker(1, files, f"iar_study.codebook.clustering:{functions[0]}", frozenset(traits))


def _order(name: str) -> Maker:
    return Maker(1, ORDERS, f"iar_study.codebook.ordering:_{name}")


MAKERS = {
    "tokenizer": Maker(
        1,
        (
            *("tokenizers/patch_vq.py", "tokenizers/vq.py", "training/train_tokenizer.py"),
            *("training/one_cycle.py", "data/batches.py"),
        ),
    ),
    "codes": Maker(
        1,
        (
            "tokenizers/patch_vq.py",
            "tokenizers/vq.py",
            "training/train_tokenizer.py:encode_images",
            "tokenizers/given.py:batch_of",
        ),
    ),
    "evaluators": Maker(
        1,
        (
            *("evaluation/evaluators.py", "evaluation/classifier.py", "training/train_classifier.py"),
            *("training/one_cycle.py", "data/batches.py"),
        ),
    ),
    "clustering none": Maker(1, ()),
    "clustering balanced": _strategy("_balanced", source=LLOYD, traits=("equal sizes", "draws")),
    "clustering greedy": _strategy("_greedy", traits=("equal sizes", "draws")),
    "clustering plain": _strategy("_plain", traits=("draws",)),
    "clustering blocks": _strategy("_blocks", traits=("equal sizes",)),
    "clustering random": _strategy("_random", "_blocks", traits=("equal sizes", "draws")),
    "clustering agglomerative": _strategy("_agglomerative"),
    "clustering agglomerative-equal": _strategy(
        "_agglomerative_equal", "_agglomerative", source=LLOYD[1:], traits=("equal sizes",)
    ),
    "order none": _order("none"),
    "order chain": _order("chain"),
    "order spectral": _order("spectral"),
    "order path": _order("path"),
    "training": Maker(1, ("generators/gpt.py", "training/train_gpt.py", "training/objective.py", "data/batches.py")),
    "loss cluster": Maker(1, ("losses/cluster_cross_entropy.py",)),
    "smoothing": Maker(1, ("losses/smoothing.py",)),
    "predictions": Maker(1, ("evaluation/predictions.py", "pipeline/measurement.py:judge_predictions")),
    "sampling": Maker(
        1,
        (
            *("generators/gpt.py", "generators/sampling.py"),
            *("pipeline/drawing.py:draw", "pipeline/drawing.py:_classes_of_part"),
        ),
    ),
    "samples' metrics": Maker(
        1,
        (
            *("evaluation/features.py", "evaluation/evaluators.py", "evaluation/feature_parts.py"),
            *("evaluation/fidelity.py", "pipeline/measuring.py", *LOOKS),
            *("pipeline/making.py:make_reference", "pipeline/making.py:make_given_reference"),
        ),
    ),
    "near codes": Maker(1, ("evaluation/near_codes.py", "pipeline/attempt.py:_replace_tokens")),
    # What these make tells itself by its content, or is no number.
    **dict.fromkeys(("data digits", "data fashion-mnist"), Maker(1, ())),
    **dict.fromkeys(("data folder", "data codes"), Maker(1, (), traits=frozenset({"path"}))),
    **dict.fromkeys(("extractor set", "extractor dinov2"), Maker(1, ())),
    "extractor inception": Maker(1, (), traits=frozenset({"maybe a path"})),
    "generator gpt": Maker(1, (), "iar_study.generators.gpt:GPT"),
    **dict.fromkeys(("executor here", "executor processes", "executor ray"), Maker(1, ())),
}
"""Name -> maker."""


class Spec(NamedTuple):
    """The name of a part of somebody's own, taken apart: `FILE.py:NAME`, or an entry point's name, and its settings."""

    file: str
    name: str
    settings: dict[str, str]

    @classmethod
    def of(cls, spec: str) -> Spec:
        place, *given = spec.split(",")
        file, _, name = place.rpartition(":") if ".py:" in place else ("", "", place)
        settings = dict(each.partition("=")[::2] for each in given)
        if len(settings) < len(given) or not all("=" in each for each in given):
            raise InputError(f"{spec}: settings follow the name as NAME=VALUE, each once")
        return cls(file, name, settings)


def names(kind: str) -> tuple[str, ...]:
    """Return the built-in parts of a kind.

    >>> names("order")
    ('none', 'chain', 'spectral', 'path')
    """
    return tuple(name.removeprefix(f"{kind} ") for name in MAKERS if name.startswith(f"{kind} "))


def built_in(kind: str, spec: str) -> Maker | None:
    """Return the maker of a built-in part, None of any other; a path may follow the name, as in `folder:PATH`."""
    name, colon, path = spec.partition(":")
    maker = MAKERS.get(f"{kind} {name}")
    if maker is None:
        return None
    if colon:
        return maker if path and maker.traits & {"path", "maybe a path"} else None
    return None if "path" in maker.traits else maker


def has_trait(kind: str, spec: str, trait: str) -> bool:
    """Whether a part has a trait of `Maker`; of what is not built in, no more is known than that it may draw."""
    maker = built_in(kind, spec)
    return trait in maker.traits if maker else trait == "draws"


def check(kind: str, spec: str) -> None:
    """Raise `InputError` unless there is such a part, with such settings; one that is built in is not loaded."""
    if not built_in(kind, spec):
        load(kind, spec)


def load(kind: str, spec: str) -> Callable[..., Any]:
    """Return the part of a name, ready to be called with what `KINDS` says.

    Raises `InputError` for one that there is not, whose file does not run, that is called with something else, or
    whose settings do not fit.
    """
    maker = built_in(kind, spec)
    if maker and maker.where:
        module, _, attribute = maker.where.partition(":")
        return getattr(importlib.import_module(module), attribute)
    asked = Spec.of(spec)
    part = _of_file(kind, asked.file, asked.name) if asked.file else _entry(kind, asked.name).load()
    made = _with_settings(part, asked.settings, f"{kind} {spec}") if is_dataclass(part) else part
    if asked.settings and not is_dataclass(part):
        raise InputError(f"{kind} {spec}: {asked.name} has no settings; a dataclass's fields are")
    wanted = KINDS[kind]
    if not callable(made) or not _takes(made, len(wanted)):
        raise InputError(f"{kind} {spec}: {asked.name} is to be called with ({', '.join(wanted)})")
    return made


def identity(kind: str, spec: str) -> str:
    """Return what tells a part in the names of results: name, settings and code or release, but not where a file is."""
    if built_in(kind, spec):
        return spec.partition(":")[0]
    made = load(kind, spec)
    settings = [f"{field.name}={getattr(made, field.name)!r}" for field in fields(made)] if is_dataclass(made) else []
    return ",".join([f"{Spec.of(spec).name}@{code_of(kind, spec)}", *settings])


def code_of(kind: str, spec: str) -> str:
    """Return the digest of the file, or the release of the package, of a part that is not built in."""
    asked = Spec.of(spec)
    if asked.file:
        return _digest_of_file(asked.file)
    release = _entry(kind, asked.name).dist
    return release.version if release else "unknown"


def label(kind: str, spec: str) -> str:
    """Return a short name for tables: of a part in a file its own, with the beginning of its code's digest."""
    if built_in(kind, spec):
        return spec.partition(":")[0]
    name, _, code = identity(kind, spec).partition("@")
    return f"{name}-{code[:8]}"


def _of_file(kind: str, file: str, name: str) -> Any:
    path = _place(file)
    if not path.is_file():
        raise InputError(f"{kind} {file}:{name}: there is no file {path}")
    module = _module(path, sha256(path.read_bytes()).hexdigest())
    known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
    if not hasattr(module, name):
        raise InputError(f"{file} has no {name!r}; {nearest(name, known)}")
    return getattr(module, name)


@cache
def _module(path: Path, content: str) -> ModuleType:
    """Run a file, once for each content that it has had."""
    name = f"iar_study_part_{content[:16]}"
    module = sys.modules[name] = ModuleType(name)  # there dataclasses look up their annotations
    module.__file__ = str(path)
    sys.path.insert(0, str(path.parent))  # for what lies beside it
    try:
        exec(compile(path.read_bytes(), path, "exec"), vars(module))
    except Exception as error:
        del sys.modules[name]
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} does not run: {type(error).__name__}: {why}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _entry(kind: str, name: str) -> EntryPoint:
    found = {each.name: each for each in entry_points(group=f"iar_study.{kind}")}
    if name not in found:
        known = [f"{each}:PATH" if has_trait(kind, f"{each}:/", "path") else each for each in names(kind)]
        others = [each for each in (*known, *found) if each != name]
        hint = nearest(name, others) if others else "none is built in"
        raise InputError(f"unknown {kind} {name!r}; {hint}; one's own is FILE.py:NAME")
    return found[name]


def _with_settings(part: Any, given: Mapping[str, str], where: str) -> Any:
    from pydantic import TypeAdapter, ValidationError  # here: who clusters a codebook need not have it

    known = [field.name for field in fields(part)]
    for name in given:
        if name not in known:
            raise InputError(f"{where}: unknown setting {name!r}; {nearest(name, known)}")
    try:
        return TypeAdapter(part).validate_python(dict(given))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InputError(f"{where}: {'; '.join(problems)}") from error


def _takes(part: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many values."""
    try:
        inspect.signature(part).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # of what is written in C nothing is known
        return True
    return True


def versions(makers: Iterable[str]) -> list[tuple[str, int]]:
    """Return (maker, version) of those that have made other numbers before, sorted: a part of names."""
    return sorted((name, MAKERS[name].version) for name in makers if name in MAKERS and MAKERS[name].version > 1)


def sources(makers: Iterable[str]) -> dict[str, str]:
    """Return maker -> digest of its source as it is now; "" where that is no more."""
    return {name: _digest(MAKERS[name].source) if name in MAKERS else _digest_of_own(name) for name in makers}


def changed(made_by: Mapping[str, str]) -> list[str]:
    """Return the makers whose source is not the one, of these digests, that something was made by.

    Not those of one's own: what they made has the digest of their file in its name.
    """
    ours = {name: source for name, source in made_by.items() if name in MAKERS or name.partition(" ")[0] not in KINDS}
    return [name for name, source in ours.items() if sources([name])[name] != source]


def edited(made_by: Mapping[str, str]) -> list[str]:
    """Return the parts of one's own whose file is not what it was when these digests were taken."""
    own = [name for name in made_by if name not in MAKERS and name.partition(" ")[0] in KINDS]
    return [name for name in own if sources([name])[name] != made_by[name]]


def _digest_of_own(maker: str) -> str:
    """Return the digest of the file of the part "KIND FILE.py:NAME"; "" of one that is not in a file, or not there."""
    file = Spec.of(maker.partition(" ")[2]).file
    return _digest_of_file(file) if file and _place(file).is_file() else ""


def _place(file: str) -> Path:
    return Path(file).expanduser().absolute()


def _digest_of_file(file: str) -> str:
    return sha256(_code(_place(file)).encode()).hexdigest()[:16]


@cache
def _digest(source: tuple[str, ...]) -> str:
    parts = (part.partition(":") for part in source)
    code = "\n".join(_code(Path(__file__).parent / file, name) for file, _, name in parts)
    return sha256(code.encode()).hexdigest()[:16]


def _code(file: Path, name: str = "") -> str:
    """Return the code of a file, or of what `Maker.source` names of it, without comments, docstrings and layout."""
    tree: ast.AST = ast.parse(file.read_text(encoding="utf-8"))
    if name.startswith("-"):
        left_out = name[1:].split(",")
        tree.body = [node for node in tree.body if getattr(node, "name", "") not in left_out]  # type: ignore[attr-defined]
    elif name:
        (tree,) = (node for node in ast.iter_child_nodes(tree) if getattr(node, "name", "") == name)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
    return ast.unparse(tree)  # `dump` differs between versions of Python


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
