"""Run the `holdfast` command as `python -m worker.cli`."""

from worker.cli.program import main

if __name__ == "__main__":
    main()
