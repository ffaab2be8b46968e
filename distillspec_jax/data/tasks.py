"""The tasks that come with the package: named splits of (input, label) texts.

Python code and gin files call these classes like functions, so they are named
like functions (as PEP 8 has it):

  task = tasks.json_lines(train='train.jsonl', validation='validation.jsonl')

`Task` has the settings that all of them share, and says what a task of your own
needs. The task of a decoder-only language model has empty inputs.

  in_memory, standard_library_code                       here
  json_lines, tab_separated, parallel_text, plain_text   data.file_tasks
  gsm8k, english_german                                  data.file_tasks
  hugging_face_dataset, tfds                             data.row_tasks
  prompted, big_bench_hard, big_bench_hard_suite         data.prompted_tasks
  registered (seqio's tasks and mixtures)                data.seqio_tasks
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.data import examples
from distillspec_jax.data import file_tasks
from distillspec_jax.data import files
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import prompted_tasks
from distillspec_jax.data import row_tasks
from distillspec_jax.data import seqio_tasks
from distillspec_jax.data import standard_library
from distillspec_jax.data import task as task_lib
from distillspec_jax.data import vocabulary_kinds

Example = examples.Example
Task = task_lib.Task
settings = task_lib.settings

json_lines = file_tasks.json_lines
tab_separated = file_tasks.tab_separated
parallel_text = file_tasks.parallel_text
plain_text = file_tasks.plain_text
gsm8k = file_tasks.gsm8k
english_german = file_tasks.english_german
hugging_face_dataset = row_tasks.hugging_face_dataset
tfds = row_tasks.tfds
prompted = prompted_tasks.prompted
big_bench_hard = prompted_tasks.big_bench_hard
big_bench_hard_suite = prompted_tasks.big_bench_hard_suite
registered = seqio_tasks.registered


@settings
class in_memory(Task):
  """A task of texts that the program has already.

  Attributes:
    pairs: split -> its (input, label) texts.
  """

  pairs: Mapping[str, Sequence[files.Pair]]
  name: str = 'in_memory'

  def __post_init__(self):
    if not isinstance(self.pairs, Mapping):
      raise errors.UserError(
          f'pairs is {check.shown(self.pairs)}; give a dictionary, split ->'
          ' pairs of texts.'
      )
    super().__post_init__()

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.pairs)

  def read(self, split: str) -> Iterator[files.Pair]:
    return iter(self.pairs[split])

  def examples(self, split: str) -> examples.Examples:
    if split not in self._examples:  # they are in memory anyway
      self._examples[split] = examples.collected(self.tokenised(split))
    return self._examples[split]


@settings
class standard_library_code(Task):
  """The embedded task: the standard library's source, which is always there.

  Attributes:
    form: 'continuation' (lines -> the next lines), 'docstrings' (signature ->
      first paragraph) or 'language_model' (text alone, decoder-only).
  """

  form: str = 'continuation'
  name: str = ''  # python_FORM
  input_length: int = 64
  label_length: int = 48
  vocabulary_size: int = 1024
  metrics: tuple[metrics_lib.Metric | str, ...] = ('edit_similarity',)
  max_examples: int | None = 40_000

  splits = standard_library.SPLITS

  def __post_init__(self):
    forms = ('continuation', 'docstrings', 'language_model')
    check.one_of(forms, form=self.form)
    self._set(name=self.name or f'python_{self.form}')
    super().__post_init__()

  @property
  def is_decoder_only(self) -> bool:
    return self.form == 'language_model'

  def read(self, split: str) -> Iterator[files.Pair]:
    if self.form == 'docstrings':
      return standard_library.docstrings(split)
    is_bytes = isinstance(self.vocabulary, vocabulary_kinds.Bytes)
    characters = 1.0 if is_bytes else 2.5  # per token, roughly
    return standard_library.continuations(
        split,
        int(self.input_length * characters),
        int(self.label_length * characters),
    )

  def source_file(self, split: str, text: str) -> str | None:
    """The module that an input comes from, as far as that can be found."""
    return standard_library.file_of(split, text)
