"""The tree of a chat template: checked, and given a meter before it is compiled."""

from __future__ import annotations

from typing import Any, cast

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from foreword.base.chat.meter import STEP, OutOfBounds

MOST_NODES = 10_000  # of a template's tree; real ones have up to 3,000
_REFUSED = (
    nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.Scope, nodes.OverlayScope,
    nodes.EvalContextModifier,
)  # fmt: skip
# names that no template can write
STEPS, PAY, JOIN, WALK, MADE, KEY = "<steps>", "<pay>", "<join>", "<walk>", "<made>", "<key>"


def check_tree(tree: nodes.Node) -> None:
    """Raise `OutOfBounds` for a tree that is too large or has statements that no chat template needs."""
    stack, count = [tree], 0
    while stack:
        node = stack.pop()
        count += 1
        if count > MOST_NODES:
            raise OutOfBounds(f"has more than {MOST_NODES:,} parts")
        if isinstance(node, _REFUSED) or (isinstance(node, nodes.For) and node.recursive):
            kind = "recursive for" if isinstance(node, nodes.For) else type(node).__name__
            raise OutOfBounds(f"line {node.lineno} has a {kind}, which is not allowed")
        stack += node.iter_child_nodes()


class Metering(NodeTransformer):
    """Puts the meter into a template's tree."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def visit_Template(self, node: nodes.Template) -> nodes.Node:
        self.generic_visit(node)
        self._pay_first(node)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        weight = _weight(node)
        self.generic_visit(node)
        node.iter = self._filter(cast(nodes.Expr, node.iter), STEPS, weight)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        self._pay_first(node)
        return node

    visit_CallBlock = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(nodes.List(node.nodes, lineno=node.lineno), JOIN)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._weighed(node.expr)
        for operand in node.ops:
            operand.expr = self._weighed(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, MADE) if isinstance(node.arg, nodes.Slice) else node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = self._filter(node.key, KEY)
        return node

    def _weighed(self, node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else self._filter(node, WALK)

    def _pay_first(self, node: Any) -> None:
        payment = self._filter(nodes.Const(_weight(node), lineno=node.lineno), PAY)
        node.body.insert(0, nodes.ExprStmt(payment, lineno=node.lineno))

    def _filter(self, node: nodes.Expr, name: str, *arguments: int) -> nodes.Filter:
        given = [nodes.Const(argument, lineno=node.lineno) for argument in arguments]
        made = nodes.Filter(node, name, given, [], None, None, lineno=node.lineno)
        return cast(nodes.Filter, made.set_environment(self._environment))


def _weight(tree: nodes.Node) -> int:
    """Return what one run through a tree costs."""
    stack, cost = [tree], 0
    while stack:
        node = stack.pop()
        data = node.data if isinstance(node, nodes.TemplateData) else getattr(node, "value", None)
        cost += STEP + (len(data) if isinstance(data, str) else 0)
        stack += node.iter_child_nodes()
    return cost
