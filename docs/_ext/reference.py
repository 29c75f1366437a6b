"""Make the reference from the code: the public names of a module, and the choice tables."""

import inspect
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tests.habits import surface, tables


class PublicNames(SphinxDirective):
    """`{public-names} jaxprune.scores`: its docstring, its choice table, and its names'."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        lines = ["```{eval-rst}", f".. automodule:: {module}", "   :no-members:", "```", ""]
        if (kind := module.removeprefix("jaxprune.")) in tables.KINDS:
            lines += [f"```{{member-table}} {kind}", "```", ""]
        lines += ["```{eval-rst}"]
        for path, value in surface.objects().items():
            if path.rpartition(".")[0] == module:
                lines += [f".. {_directive(value)}:: {path}", ""]
        return _parse(self, [*lines, "```"])


class FaceTable(SphinxDirective):
    """`{face-table}`: every name of the top level with its first line, linked to its page."""

    def run(self) -> list[nodes.Node]:
        rows = ["| name | what it does |", "| --- | --- |"]
        for name, value in surface.modules()["jaxprune"].items():
            role = "mod" if inspect.ismodule(value) else "obj"
            link = f"{{py:{role}}}`{name} <{surface.home(f'jaxprune.{name}', value)}>`"
            rows.append(f"| {link} | {_summary(value)} |")
        return _parse(self, rows)


class MemberTable(SphinxDirective):
    """`{member-table} scores`: the rows of one kind, with what each needs and its paper."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        kind = self.arguments[0]
        public = surface.modules()[f"jaxprune.{kind}"]
        rows = ["| name | what it does | needs | paper |", "| --- | --- | --- | --- |"]
        for row in tables.KINDS[kind]:
            value = public[row.name]
            link = f"{{py:obj}}`{row.name} <jaxprune.{kind}.{row.name}>`"
            needs = ", ".join(sorted(row.needs)) or "–"
            rows.append(f"| {link} | {_summary(value)} | {needs} | {_paper(row.paper)} |")
        return _parse(self, rows)


def _directive(value: Any) -> str:
    if inspect.isclass(value):
        return "autoclass"
    return "autofunction" if inspect.isroutine(value) else "autodata"


def _summary(value: Any) -> str:
    first = (inspect.getdoc(value) or "").split("\n\n")[0]
    return first.replace("\n", " ").replace("``", "`").replace("|", r"\|")


def _paper(number: str | None) -> str:
    if number is None:
        return "–"
    return f"[{number}](https://arxiv.org/abs/{number.removeprefix('arXiv:')})"


def _parse(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    holder = nodes.container()
    content = StringList(lines, source=directive.get_source_info()[0])
    directive.state.nested_parse(content, directive.content_offset, holder)
    return holder.children


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    # "Alias for field number 0" tells nobody anything; the signature has the fields.
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives with Sphinx."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("face-table", FaceTable)
    app.add_directive("member-table", MemberTable)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
