"""Property tests of this room run without a deadline: the first example pays for compiling a kernel."""

from hypothesis import settings

settings.register_profile("compiled kernels", deadline=None)
settings.load_profile("compiled kernels")
