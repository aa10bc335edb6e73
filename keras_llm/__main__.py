import sys

from keras_llm.cli import main

sys.exit(main())
