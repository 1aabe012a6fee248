"""The names of reasoning parsers, apart from the parsers so that a command line can list them cheaply."""

PARSERS = ("auto", "none", "hunyuan_a13b", "qwen3", "deepseek_r1")
