"""A run's network for other programs, with all that its users must know."""

# What --to of the command can be: programs, which need no other code; a plain
# file of weights; files of other frameworks.
PROGRAMS = ('stablehlo', 'onnx')
PLAIN = ('safetensors',)
FRAMEWORKS = ('huggingface', 'pyslowfast', 'pytorchvideo')
FORMATS = (*PROGRAMS, *PLAIN, *FRAMEWORKS)
