package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
