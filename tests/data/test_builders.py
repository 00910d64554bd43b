from score_jax.data import builders, tfds


def test_builders_and_reader_agree_on_names_and_version():
    names = {cls.name for cls in builders.BUILDERS.values()}
    assert names == set(tfds.OWN)
    assert {str(cls.VERSION) for cls in builders.BUILDERS.values()} == {tfds.OWN_VERSION}
