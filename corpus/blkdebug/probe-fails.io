@stderr
read 0 512
