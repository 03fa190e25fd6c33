"""`manyvec models`: list models that can be loaded."""

from __future__ import annotations

from manyvec.cli.options import JsonOption

EXAMPLES = "Example: manyvec models --json"


def run(as_json: JsonOption = False) -> None:
    """List published models by family: dimensions of their token vectors, parameters, and what each is good for."""
    from manyvec.cli.output import print_json, print_table
    from manyvec.models.families import FAMILIES, table

    if as_json:
        print_json(list(table()))
        return
    for family in FAMILIES:
        print(f"{family.name} ({family.reads}): {family.recipe}")
        rows = [
            (
                f"  {model.name}",
                f"{model.dim} dims" if model.dim else "",
                f"{model.millions:g}M" if model.millions else "",
                model.good_for,
            )
            for model in family.published
        ]
        print_table(["", "", "", ""], rows, right=(1, 2))
    print("\nA folder with any other checkpoint of these families can be loaded too.")
