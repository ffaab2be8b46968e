from distillspec_jax.data import standard_library


def test_the_standard_library_is_divided_by_module():
  splits = {
      s: set(standard_library.modules(s)) for s in standard_library.SPLITS
  }
  assert all(splits.values())
  assert sum(map(len, splits.values())) == len(set().union(*splits.values()))


def test_a_continuation_follows_its_input():
  path = standard_library.modules('validation')[0]
  text = '\n'.join(line.rstrip() for line in path.read_text().split('\n'))
  pairs = list(standard_library.continuations('validation', 80, 80))[:5]
  for before, after in pairs:
    assert f'{before}\n{after}' in text


def test_the_module_of_a_text_is_found():
  path = standard_library.modules('test')[1]
  text = '\n'.join(line.rstrip() for line in path.read_text().split('\n'))
  found = standard_library.file_of('test', text[-400:])
  assert found and path.as_posix().endswith(f'/{found}')
  assert standard_library.file_of('validation', text) is None
  assert standard_library.file_of('test', ' \n') is None
