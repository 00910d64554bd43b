import pytest

from score_jax.tasks.grading.characters import as_latex


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x²", "x^{2}"),
        ("xⁿ⁺¹", "x^{n+1}"),
        ("x₁²", "x_{1}^{2}"),
        ("10⁻³", "10^{-3}"),
        ("½", r"\frac{1}{2}"),
        ("3½", r"3\frac{1}{2}"),
        ("²⁄₃", r"\frac{2}{3}"),
        ("√12", r"\sqrt{12}"),
        ("√(x+1)", r"\sqrt(x+1)"),
        ("∛8", r"\sqrt[3]{8}"),
        ("⁵√x", r"\sqrt[5]{x}"),
        ("2³√5", r"2^{3}\sqrt{5}"),
        ("−1", "-1"),
        ("θ", r"\theta "),
        ("Σ", r"\Sigma "),
        ("𝑥＋𝜋", r"x+\pi "),
        ("0.1̅6̅", r"0.\overline{16}"),
        ("0.3̇", r"0.\dot{3}"),
    ],
)
def test_mathematics_becomes_latex(text, expected):
    assert as_latex(text) == expected


@pytest.mark.parametrize(
    "text", ["x^2", "４２", "٤٢", "𝟒𝟐", "Ⅻ", "4\u200b2", "é", "5ª", "™", "\ud800"]
)
def test_other_scripts_digits_and_words_stay(text):
    assert as_latex(text) == text
