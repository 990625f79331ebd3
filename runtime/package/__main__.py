"""`python -m moorage` runs the command line where the console scripts are not on the path."""

from moorage.runtime.cli import main

if __name__ == "__main__":
    main()
