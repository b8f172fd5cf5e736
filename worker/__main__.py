"""`python -m worker`."""

if __name__ == "__main__":
    try:
        from publisher.command_line import end
        from worker.cli.main import main

        code = main()
    except KeyboardInterrupt:  # before there was a command to end
        import os

        os.write(2, b"interrupted\n")
        os._exit(130)
    end(code)
