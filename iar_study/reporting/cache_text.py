"""What the caches hold, as lines for a person."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from iar_study.errors import listed
from iar_study.pipeline.cache import Product, unused
from iar_study.reporting.needs_text import aligned
from iar_study.running.needs import duration, plural, short


def cache_text(products: Sequence[Product]) -> str:
    """Return the products and trials as a table, with a last line that counts them."""
    if not products:
        return "nothing is cached here yet"
    rows = [["kind", "name", "size", "age", "made from", "used by"]]
    rows += [
        [
            each.kind,
            each.name,
            short(each.bytes, "B"),
            _age(each),
            made_from(each),
            listed(each.studies) if each.studies else "no study",
        ]
        for each in products
    ]
    return "\n".join([*aligned(rows), "", f"{counted(products)}, of which no study uses {counted(unused(products))}"])


def product_text(product: Product, products: Sequence[Product]) -> str:
    """Return all that is known of one product or trial.

    products : all of them, among which those are looked up that a trial was made from.
    """
    about = {key: value for key, value in product.about.items() if key not in ("config", "inputs")}
    rows = [
        ["file", str(product.path)],
        ["size", short(product.bytes, "B")],
        ["age", _age(product)],
        ["studies", ", ".join(product.studies) or "none uses it; `iar-study cache --prune` would remove it"],
    ]
    if product.kind not in ("training", "trial"):
        rows.append(["trials", listed(product.trials, most=10) if product.trials else "none"])
    rows += [[key, _shown(value)] for key, value in about.items()]
    rows += [[f"input {name}", _shown(value)] for name, value in product.about.get("inputs", {}).items()]
    made = [each for each in products if product.name in each.trials]
    rows += [[f"made from {each.kind}", each.name] for each in made]
    rows += [[key, _shown(value)] for key, value in product.about.get("config", {}).items()]
    return "\n".join([f"{product.kind} {product.name}", *aligned([[f"  {name}", text] for name, text in rows])])


def unused_text(products: Sequence[Product]) -> str:
    """Return what no study uses, and its size."""
    rows = [[each.kind, each.name, short(each.bytes, "B"), _age(each), made_from(each)] for each in products]
    listing = [*aligned(rows), ""] if rows else []
    return "\n".join([*listing, f"no study uses: {counted(products)}" + "; --prune --yes removes it" * bool(rows)])


def counted(products: Sequence[Product]) -> str:
    """Return how many products and trials these are, and their size."""
    if not products:
        return "nothing"
    of_studies = {kind: sum(each.kind == kind for each in products) for kind in ("training", "trial")}
    numbers = {"product": len(products) - sum(of_studies.values()), **of_studies}
    told = " and ".join(plural(number, noun) for noun, number in numbers.items() if number)
    return f"{told}, {short(sum(each.bytes for each in products), 'B')}"


def made_from(product: Product) -> str:
    """Return in a few words what a product was made from, as far as it tells itself."""
    about, config = product.about, product.about.get("config", {})
    if "damaged" in about:
        return "damaged"
    if product.kind in ("training", "trial"):
        data = about.get("data", {}).get("name")
        return f"{data}, {config['train.steps']:,} steps, seed {about['seed']}" if data else "not begun"
    if product.kind == "tokenizer" and config:
        return f"{config['codebook_size']:,} codes, {config['steps']:,} steps, seed {config['seed']}"
    if product.kind == "evaluators" and config:
        return f"five classifiers, {config['steps']:,} steps, seed {config['seed']}"
    if product.kind == "clustering" and config:
        return (
            "none"
            if config["strategy"] == "none"
            else f"{config['strategy']}, {config['n_clusters']}, seed {config['seed']}"
        )
    return ""


def _age(product: Product) -> str:
    return duration(max(time.time() - product.modified, 0) / 3600)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
