import pytest

from score_jax.tasks.grading import latex


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("1", "scalar", 0),
        ("1,234", "scalar", 0),
        ("1,2", "list", 2),
        ("1,23", "list", 2),
        ("(1,2)", "tuple", 2),
        ("[1,2]", "interval", 2),
        ("(1,2]", "interval", 2),
        (r"\{1,2,3\}", "set", 3),
        (r"(1,2)\cup(3,4)", "union", 2),
        ("(1,2),(3,4)", "list", 2),
        ("(x+1)(x+2)", "scalar", 0),
        (r"f(1,2)", "scalar", 0),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "matrix", 4),
        (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "scalar", 0),
        (r"\pm 1", "list", 2),
        ("1 and 2", "list", 2),
        ("band", "scalar", 0),
        ("2 < x < 5", "chain", 3),
        (r"x \geq 2", "chain", 2),
        ("x = 2", "scalar", 0),
        ("<1,2>", "list", 2),
        (r"\{x : x > 2\}", "set", 1),
        (r"\emptyset", "set", 0),
        ("<" * 2000, "scalar", 0),
        ("a<" * 1000 + "b", "scalar", 0),
    ],
)
def test_structure_is_read_from_the_text(text, kind, parts):
    answer = latex.parse(latex.spell(text))
    assert (answer.kind, len(answer.parts)) == (kind, parts)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"10,\!000", "10,000"),
        (r"a \\ b", r"a \\ b"),
        (r"\left( 1 \right)", "( 1 )"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"\leftarrow", r"\leftarrow"),
        ("$5.$", "5"),
        ("√2 ≤ x²", r"\sqrt{2} \le x^{2}"),
        (r"\varnothing", r"\{\}"),
        (r"\varphi", r"\phi"),
    ],
)
def test_one_spelling(text, spelled):
    assert latex.spell(text) == spelled
