"""The state of AdamW in official checkpoints: moments by number of parameter."""

from irepa_jax import errors
from irepa_jax.weights import state_dicts

MOMENTS = {'mu': 'exp_avg', 'nu': 'exp_avg_sq'}


def numbered(opt, names):
  """Returns {parameter: its entry} of the state of AdamW; DataError else."""
  state = opt.get('state') if isinstance(opt, dict) else None
  if not isinstance(state, dict):
    raise errors.DataError(
        f'`opt` holds {state_dicts.kind(opt)}; expected the state of AdamW'
    )
  return {_name(i, names): _entry(i, entry) for i, entry in state.items()}


def _name(number, names):
  if not isinstance(number, int) or not 0 <= number < len(names):
    raise errors.DataError(
        f'`opt` is of parameter {number!r}; the model has 0 to {len(names) - 1}'
    )
  return names[number]


def _entry(number, entry):
  """Returns the moments of a parameter, and its step as an integer."""
  wanted = ('step', *MOMENTS.values())
  if not isinstance(entry, dict) or not all(k in entry for k in wanted):
    raise errors.DataError(
        f'`opt` has {state_dicts.kind(entry)} for parameter {number}; expected'
        f' {", ".join(wanted)} of AdamW'
    )
  step = state_dicts.whole_number(entry['step'], f'step of parameter {number}')
  return entry | {'step': step}
