"""What Hydra raises when files or overrides do not compose."""

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

FAILURES = (HydraException, OmegaConfBaseException, ValueError, YAMLError)
