r"""Says where published weights are, and imports them once they are here.

python -m mgjax.weights                lists the names
python -m mgjax.weights videomae_b     publisher's address, size, SHA-256 and
                                       licence; then it imports the file or
                                       folder, if it lies in --folder

Nothing is downloaded. The import is that of mgjax.import_weights, which takes
other files as well; it writes FOLDER/NAME, from which `mgjax.new
--preset=finetune --weights=NAME` starts.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import sys

from absl import flags

from mgjax import cli


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  text = 'Folder that has the file, and gets the imported weights.'
  flag('folder', str, 'weights', text)


if __name__ == '__main__':
  sys.exit(
    cli.run(
      'mgjax.weights.published',
      define_flags,
      arguments='NAME',
      takes_config=False,
    )
  )
