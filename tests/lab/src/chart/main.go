// Renders a Helm chart as far as it needs no cluster and no other chart:
//
//	chart DIRECTORY NAMESPACE <VALUES >MANIFESTS
//
// It has what the templates of a chart see: .Values, .Files and .Release, the functions of sprig, and Helm's own
// functions for YAML. A value that is missing is empty, as in Helm.
package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 3 {
		fatal(fmt.Errorf("usage: chart DIRECTORY NAMESPACE <VALUES"))
	}
	if err := render(os.Args[1], os.Args[2], os.Stdin, os.Stdout); err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

type table = map[string]interface{}

// files are those of the chart that are no templates.
type files map[string]string

// Get returns a file, or nothing.
func (f files) Get(name string) string {
	return f[name]
}

// Lines returns the lines of a file.
func (f files) Lines(name string) []string {
	text, ok := f[name]
	if !ok {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

func render(directory, namespace string, stdin io.Reader, stdout io.Writer) error {
	all, err := read(directory)
	if err != nil {
		return err
	}
	values, given := table{}, table{}
	if err := yaml.Unmarshal([]byte(all["values.yaml"]), &values); err != nil {
		return fmt.Errorf("values.yaml: %w", err)
	}
	text, err := io.ReadAll(stdin)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(text, &given); err != nil {
		return fmt.Errorf("the values: %w", err)
	}
	data := table{
		"Values":  overlay(values, given),
		"Files":   all,
		"Release": table{"Name": "nri-unpack", "Namespace": namespace},
	}
	for name, text := range all {
		if filepath.Dir(name) != "templates" || !strings.HasSuffix(name, ".yaml") {
			continue
		}
		parsed, err := template.New(name).Option("missingkey=zero").Funcs(functions()).Parse(text)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := parsed.Execute(&out, data); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "---\n%s\n", strings.ReplaceAll(out.String(), "<no value>", ""))
	}
	return nil
}

func functions() template.FuncMap {
	functions := sprig.TxtFuncMap()
	delete(functions, "env")
	delete(functions, "expandenv")
	functions["toYaml"] = func(value interface{}) (string, error) {
		text, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(text), "\n"), err
	}
	functions["fromYaml"] = func(text string) (table, error) {
		value := table{}
		return value, yaml.Unmarshal([]byte(text), &value)
	}
	return functions
}

// read returns the files of a chart by their names in it.
func read(directory string) (files, error) {
	all := files{}
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(directory, path)
		all[name] = string(text)
		return err
	})
	return all, err
}

// overlay returns the values, with those that were given in their place.
func overlay(values, given table) table {
	for key, value := range given {
		old, isTable := values[key].(table)
		if new, ok := value.(table); ok && isTable {
			value = overlay(old, new)
		}
		values[key] = value
	}
	return values
}
