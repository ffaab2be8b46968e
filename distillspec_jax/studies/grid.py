"""Grid: methods x draft models x training lengths x seeds.

The paper's heat maps are the grid of divergences and of the data that they are
minimised on, with decodings from `evaluate`. Each row starts from the
fine-tuned draft of its model and seed, and is compared with that draft
fine-tuned for as many more steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, NamedTuple

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.studies import builder as builder_lib
from distillspec_jax.studies import setup as setup_lib
from distillspec_jax.training import method as method_lib

# Data -> (fixed_fraction, draft_fraction).
DATA = {
    'labels': (1.0, 1.0),
    'draft': (0.0, 1.0),
    'target': (0.0, 0.0),
    'mixed': (0.0, 0.5),
}
# DistillSpec's comparison: name -> (divergence, fixed and draft fraction).
NAMED = {
    'SeqKD': ('cross_entropy', 0.0, 0.0),
    'supervised KD': ('forward_kl', 1.0, 1.0),
    'ImitKD': ('forward_kl', 0.5, 1.0),
    'f-Distill': ('total_variation', 0.0, 0.5),
    'on-policy GKD': ('forward_kl', 0.0, 1.0),
    'on-policy JSD': ('jsd', 0.0, 1.0),
}


class NamedMethod(NamedTuple):
  """A method and what it is called: axis -> label."""

  labels: dict[str, Any]
  method: method_lib.Method


def divergences_by_data(
    *,
    divergences: Sequence[str] = (
        'forward_kl', 'reverse_kl', 'jsd', 'total_variation',
    ),
    data: Sequence[str] = ('labels', 'draft', 'target', 'mixed'),
    temperature: float = 1.0,
    reduction: str = 'mean',
) -> tuple[NamedMethod, ...]:  # fmt: skip
  """Each divergence with each kind of data, as in the paper's heat maps.

  Args:
    divergences: names of `losses.divergences`.
    data: 'labels' of the dataset, text of the 'draft' or of the 'target', or
      'mixed': half of either.
    temperature: at which that text is sampled.
    reduction: of the loss, see `Method`.
  """
  for name in data:
    check.one_of(DATA, data=name)
  return tuple(
      NamedMethod(
          {'divergence': divergence, 'data': name},
          method_lib.Method(
              divergence=divergence,
              fixed_fraction=DATA[name][0],
              draft_fraction=DATA[name][1],
              temperature=temperature,
              reduction=reduction,
          ),
      )
      for name in data
      for divergence in divergences
  )


def named_methods(
    *,
    names: Sequence[str] = tuple(NAMED),
    temperature: float = 1.0,
    reduction: str = 'mean',
) -> tuple[NamedMethod, ...]:
  """The methods that the paper compares, by name.

  Args:
    names: 'SeqKD', 'supervised KD', 'ImitKD', 'f-Distill', 'on-policy GKD',
      'on-policy JSD'.
    temperature: at which text is sampled for training.
    reduction: of the loss, see `Method`.
  """
  methods = []
  for name in names:
    check.one_of(NAMED, names=name)
    divergence, fixed, draft = NAMED[name]
    method = method_lib.Method(
        divergence=divergence,
        fixed_fraction=fixed,
        draft_fraction=draft,
        temperature=temperature,
        reduction=reduction,
    )
    methods.append(NamedMethod({'method': name}, method))
  return tuple(methods)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """Every combination of methods, drafts and training lengths.

  Attributes:
    setup: the models and how they are measured.
    methods: name -> Method, or what `divergences_by_data` or `named_methods`
      return; None: that of `setup.distil`.
    drafts: models of drafts: names of `models.config.published`, or name ->
      configuration; (): that of `setup.draft`.
    num_steps: training lengths; (): that of `setup.distil`.
  """

  setup: setup_lib.Setup
  methods: Mapping[str, method_lib.Method] | Sequence[NamedMethod] | None = None
  drafts: Mapping[str, Any] | Sequence[str] = ()
  num_steps: Sequence[int] = ()

  kind: ClassVar[str] = 'grid'

  def __post_init__(self):
    check.at_least(1, **{f'num_steps[{i}]': n for i, n in self._steps()})
    if self.methods is not None and not self.methods:
      raise errors.UserError(
          'methods is empty; give at least one, or leave it out.'
      )
    check.distinct(num_steps=self.num_steps, drafts=list(self.drafts))
    if self.drafts and isinstance(self.setup.draft, str):
      raise errors.UserError(
          f'drafts are {list(self.drafts)}, but the draft is given,'
          f' {self.setup.draft}; leave drafts out.'
      )

  def _steps(self):
    return enumerate(self.num_steps)

  @property
  def _methods(self) -> list[NamedMethod]:
    if self.methods is None:
      return [NamedMethod({}, self.setup.distil.method)]
    if isinstance(self.methods, Mapping):
      return [
          NamedMethod({'method': name}, method)
          for name, method in self.methods.items()
      ]
    return list(self.methods)

  @property
  def axes(self) -> tuple[str, ...]:
    own = (('draft', self.drafts), ('steps', self.num_steps))
    names = [axis for each in self._methods for axis in each.labels]
    names += [axis for axis, values in own if values]
    return tuple(dict.fromkeys(names))

  def build(self, builder: builder_lib.Builder) -> None:
    drafts = self.drafts or {'': None}
    if not isinstance(drafts, Mapping):
      drafts = {name: name for name in drafts}
    for seed in self.setup.seeds:
      for draft, model in drafts.items():
        self._build(builder, seed, draft, model)

  def _build(
      self, builder: builder_lib.Builder, seed: int, draft: str, model: Any
  ) -> None:
    """Adds the rows of one draft and seed."""
    setup, prefix = self.setup, f'{draft} ' if draft else ''
    of_draft = {'draft': draft} if draft else {}
    target = builder.target(seed)
    fine_tuned = builder.fine_tuned(seed, model, prefix)
    measured = builder.measure_pair(target, fine_tuned, seed)
    builder.row(fine_tuned, seed, of_draft, measured)
    for num_steps in self.num_steps or (None,):
      suffix = f', {num_steps} steps' if num_steps else ''
      labels = {**of_draft, **({'steps': num_steps} if num_steps else {})}
      baseline = fine_tuned.name
      if setup.control is not None:
        control = builder.from_draft(
            builder_lib.with_steps(setup.control, num_steps), seed,
            name=f'{prefix}{builder_lib.LONGER}{suffix}', start=fine_tuned,
            target=None,
        )  # fmt: skip
        baseline = control.name
        measured = builder.measure_pair(target, control, seed, timed=False)
        builder.row(control, seed, labels, measured)
      for each in self._methods:
        own = ', '.join(map(str, each.labels.values())) or 'distilled'
        training = dataclasses.replace(setup.distil, method=each.method)
        distilled = builder.from_draft(
            builder_lib.with_steps(training, num_steps), seed,
            name=f'{prefix}{own}{suffix}', start=fine_tuned, target=target,
        )  # fmt: skip
        measured = builder.measure_pair(target, distilled, seed)
        builder.row(
            distilled, seed, {**each.labels, **labels}, measured,
            control=baseline,
        )  # fmt: skip
