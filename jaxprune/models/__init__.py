"""A language model of the Llama family, with real weights: load, evaluate, generate, save."""

from jaxprune.models.checkpoint import Pretrained as Pretrained
from jaxprune.models.checkpoint import load as load
from jaxprune.models.checkpoint import save as save
from jaxprune.models.config import LlamaConfig as LlamaConfig
from jaxprune.models.evaluate import Perplexity as Perplexity
from jaxprune.models.evaluate import perplexity as perplexity
from jaxprune.models.fetch import fetch_smollm2 as fetch_smollm2
from jaxprune.models.generate import generate as generate
from jaxprune.models.layout import init_llama as init_llama
from jaxprune.models.layout import stack_layers as stack_layers
from jaxprune.models.layout import unstack_layers as unstack_layers
from jaxprune.models.llama import llama as llama
from jaxprune.models.rope import LinearScaling as LinearScaling
from jaxprune.models.rope import Llama3Scaling as Llama3Scaling
from jaxprune.models.text import even_windows as even_windows
from jaxprune.models.text import load_tokenizer as load_tokenizer
from jaxprune.models.text import tokenize as tokenize
from jaxprune.models.text import unwrap as unwrap
