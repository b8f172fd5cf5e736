"""`python -m publisher`."""

if __name__ == "__main__":
    try:
        from publisher.cli import main
        from publisher.command_line import end

        code = main()
    except KeyboardInterrupt:  # before there was a command to end
        import os

        os.write(2, b"interrupted\n")
        os._exit(130)
    end(code)
