import pytest

from score_jax.data import reasoning, sources

needs_package = pytest.mark.skipif(
    not reasoning.find_spec("reasoning_gym"), reason="reasoning-gym is absent"
)
NEVER = (
    "countdown puzzle24 n_queens binary_matrix spiral_matrix string_insertion simple_integration "
    "intermediate_integration polynomial_multiplication game_of_life_halting"
)


def test_tasks_whose_scorers_run_model_text_are_not_offered():
    assert not set(NEVER.split()) & set(reasoning.GRADERS)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="chain_sum"):
        sources.load(source="reasoning_gym", name="countdown")


@needs_package
@pytest.mark.parametrize("name", sorted(reasoning.GRADERS))
def test_every_task_gives_the_same_problem_at_the_same_place(name):
    first, again = (
        sources.load(source="reasoning_gym", name=name, split="train", count=4, seed=3)
        for _ in range(2)
    )
    assert len(first) == 4
    assert first[2] == again[2] and first[-1] == again[3]
    assert first[0].answer and first[0].prompt and first[0].task in ("math", "exact")


@needs_package
def test_splits_and_seeds_differ():
    texts = {
        (split, seed): sources.load(
            source="reasoning_gym", name="products", split=split, count=3, seed=seed
        )[0].prompt
        for split in ("train", "test")
        for seed in (0, 1)
    }
    assert len(set(texts.values())) == 4


@needs_package
def test_gold_answers_pass_the_self_test():
    from score_jax.tasks import registry
    from score_jax.tasks.grading.pool import Pool

    found = {"math": [], "exact": []}
    for name, task in reasoning.GRADERS.items():
        found[task] += reasoning.problems(name, split="test", count=3, seed=0)[:]
    with Pool(2) as pool:
        for task, problems in found.items():
            pool.self_test(registry.get(task), problems)
