"""Tasks that are asked as chain-of-thought prompts, and BIG-Bench Hard.

Wei et al. 2022, https://arxiv.org/abs/2201.11903: the label reasons before it
answers, and worked examples may come before the question.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import itertools
import json
import re
from typing import Any

from etils import epath

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import sources
from distillspec_jax.data import files
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import task as task_lib

settings = task_lib.settings
_CALCULATOR = re.compile(r'<<[^<>]*>>')
_ANSWER = re.compile(r'\s*####\s*(.+?)\s*$')
# Suzgun et al. 2022, https://arxiv.org/abs/2210.09261: 27 files, 23 tasks; the
# logical deductions and the shuffled objects are one task each.
BIG_BENCH_HARD = (
    'boolean_expressions',
    'causal_judgement',
    'date_understanding',
    'disambiguation_qa',
    'dyck_languages',
    'formal_fallacies',
    'geometric_shapes',
    'hyperbaton',
    'logical_deduction_five_objects',
    'logical_deduction_seven_objects',
    'logical_deduction_three_objects',
    'movie_recommendation',
    'multistep_arithmetic_two',
    'navigate',
    'object_counting',
    'penguins_in_a_table',
    'reasoning_about_colored_objects',
    'ruin_names',
    'salient_translation_error_detection',
    'snarks',
    'sports_understanding',
    'temporal_sequences',
    'tracking_shuffled_objects_five_objects',
    'tracking_shuffled_objects_seven_objects',
    'tracking_shuffled_objects_three_objects',
    'web_of_lies',
    'word_sorting',
)


@settings
class prompted(task_lib.Task):
  """The examples of another task, such as GSM8K, as prompts.

    Q: WORKED QUESTION
    A: ITS LABEL

    Q: QUESTION
    A:

  with the defaults and one worked example. The label is the other task's; where
  it ends in '#### N', that becomes `answer`.

  Attributes:
    task: whose inputs, without its `prefix`, and labels.
    prefix: put before each question.
    suffix: put after each question.
    shots: how many worked examples come first; they are the first ones of the
      training split.
    separator: between worked examples.
    answer: what '#### N' at the end becomes, with {} for N; None: it stays.
    calculator: False leaves out the marks <<6*7=42>> of GSM8K.
    metrics: default: those of `task`.
  """

  task: task_lib.Task
  name: str = ''  # that of the task
  prefix: str = 'Q: '
  suffix: str = '\nA:'
  shots: int = 0
  separator: str = '\n\n'
  answer: str | None = ' The answer is {}.'
  calculator: bool = False
  metrics: tuple[metrics_lib.Metric | str, ...] = ()

  def __post_init__(self):
    if not isinstance(self.task, task_lib.Task):
      raise errors.UserError(
          f'prompted.task is {check.shown(self.task)}; give a task, as in'
          ' @tasks.gsm8k().'
      )
    check.at_least(0, owner='prompted', shots=self.shots)
    check.text(suffix=self.suffix, separator=self.separator)
    if self.answer is not None:
      check.text(answer=self.answer)
      if '{}' not in self.answer:
        raise errors.UserError(
            f"prompted.answer is {self.answer!r}; write {{}} for '#### N'."
        )
    self._set(
        task=dataclasses.replace(self.task, prefix=''),
        name=self.name or self.task.name,
        metrics=self.metrics or self.task.metrics,
    )
    super().__post_init__()

  @property
  def splits(self) -> tuple[str, ...]:
    return self.task.splits

  def files(self, split: str) -> list[str]:
    more = self.task.files('train') if self.shots else []
    return [*self.task.files(split), *more]

  def code(self) -> list[Any]:
    return [type(self), *self.task.code()]

  def read(self, split: str) -> Iterator[files.Pair | None]:
    worked = ''
    if self.shots:
      first = filter(None, self.task.stream('train'))
      for question, label in itertools.islice(first, self.shots):
        reasoning = self._reasoning(label)
        worked += f'{question}{self.suffix}{reasoning}{self.separator}'
        worked += self.prefix  # that of what comes next
    for pair in self.task.stream(split):
      if pair is None:
        yield None
      else:
        question, label = pair
        label = self._reasoning(label).lstrip()
        yield f'{worked}{question}{self.suffix}', label

  def _reasoning(self, label: str) -> str:
    """' REASONING The answer is N.'"""
    if not self.calculator:
      label = _CALCULATOR.sub('', label)
    if self.answer is not None:
      label = _ANSWER.sub(lambda x: self.answer.format(x.group(1)), label)
    return f' {label}'


@settings
class big_bench_hard(task_lib.Task):
  """A task of BIG-Bench Hard, or all of them in turn; for tests alone.

  Suzgun et al. 2022, https://arxiv.org/abs/2210.09261.

  Attributes:
    folder: with the released files, such as navigate.json.
    subsets: names of files, without .json; default: all 27.
    prefix: put before each question.
    suffix: put after each question.
  """

  folder: str = dataclasses.field(kw_only=False)
  subsets: str | tuple[str, ...] = BIG_BENCH_HARD
  name: str = ''  # that of the only subset
  input_length: int = 512
  label_length: int = 320
  metrics: tuple[metrics_lib.Metric | str, ...] = ('final_answer',)
  prefix: str = 'Q: '
  suffix: str = "\nA: Let's think step by step."

  splits = ('test',)

  def __post_init__(self):
    if isinstance(self.subsets, str):
      self._set(subsets=(self.subsets,))
    for subset in self.subsets:
      check.one_of(BIG_BENCH_HARD, owner='big_bench_hard', subsets=subset)
    check.text(suffix=self.suffix)
    only = self.subsets[0] if len(self.subsets) == 1 else 'big_bench_hard'
    self._set(name=self.name or only)
    super().__post_init__()

  def files(self, split: str) -> list[str]:
    return [f'{self.folder}/{subset}.json' for subset in self.subsets]

  def read(self, split: str) -> Iterator[files.Pair]:
    for path in self.files(split):
      for question, answer in _examples(path):
        yield f'{question}{self.suffix}', answer


def big_bench_hard_suite(
    *, folder: str, **changes: object
) -> dict[str, big_bench_hard]:
  """Name -> task, for each of the 27 files; for a study of transfer.

  Args:
    folder: as in `big_bench_hard`.
    **changes: settings of all of them.
  """
  return {
      name: big_bench_hard(folder, subsets=name, **changes)
      for name in BIG_BENCH_HARD
  }


def _examples(path: str) -> Iterator[files.Pair]:
  """(input, target) of a released file."""
  wanted = (
      f'{path} is no file of BIG-Bench Hard, which is an object with'
      " 'examples', each with texts 'input' and 'target'."
  )
  try:
    text = epath.Path(sources.expanded(path)).read_text()
    examples = json.loads(text)['examples']
    pairs = [(each['input'], each['target']) for each in examples]
  except OSError as error:
    raise errors.UserError(
        f'The file {path} cannot be read: {error.strerror or error}. The'
        ' released files lie in the folder bbh of'
        ' github.com/suzgunmirac/BIG-Bench-Hard.'
    ) from error
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(wanted) from error
  if not all(isinstance(text, str) for pair in pairs for text in pair):
    raise errors.UserError(wanted)
  return iter(pairs)
