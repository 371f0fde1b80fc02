// Runs both implementations of spectral_norm.h, compiled with sanitizers, over shapes that cross every border, on
// memory of exactly the size that they may touch, and holds them against plain loops in double. Prints what disagrees.
// The sanitizer of threads takes the C++ alone.
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "spectral_norm.h"

namespace {

using vitgan::Gradient;
using vitgan::Matrix;
using Values = std::vector<double>;

std::mt19937 engine(0);

// On the heap and of its exact size, so that one step beyond it is seen.
template <typename T>
std::unique_ptr<T[]> copied(const Values& values) {
  std::unique_ptr<T[]> memory(new T[values.size()]);
  for (std::size_t i = 0; i < values.size(); ++i) memory[i] = static_cast<T>(values[i]);
  return memory;
}

Values random_values(std::size_t count) {
  std::normal_distribution<double> normal;
  Values values(count);
  for (double& value : values) value = static_cast<float>(normal(engine));
  return values;
}

Values normalised(Values x) {
  double sum = 0;
  for (const double value : x) sum += value * value;
  for (double& value : x) value /= std::sqrt(sum);
  return x;
}

struct Case {
  std::int64_t rows, cols;
  bool transposed;
  Values weight, left, right, grad;
  double sigma = 0;
  Values scaled, grad_weight;

  Case(std::int64_t rows, std::int64_t cols, bool transposed)
      : rows(rows), cols(cols), transposed(transposed), weight(random_values(elements())),
        left(normalised(random_values(static_cast<std::size_t>(rows)))),
        right(normalised(random_values(static_cast<std::size_t>(cols)))), grad(random_values(elements())) {}

  std::size_t elements() const { return static_cast<std::size_t>(rows * cols); }
  double at(std::int64_t row, std::int64_t col) const { return weight[static_cast<std::size_t>(row * cols + col)]; }

  Values times(bool towards_right) const {
    Values product(static_cast<std::size_t>(towards_right ? cols : rows));
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) {
        const auto r = static_cast<std::size_t>(row), c = static_cast<std::size_t>(col);
        if (towards_right) product[c] += at(row, col) * left[r];
        else product[r] += at(row, col) * right[c];
      }
    }
    return product;
  }

  void compute(int n_iterations, double goal, double grad_sigma) {
    for (int half = 0; half < 2 * n_iterations; ++half) {
      const bool towards_right = (half % 2 == 0) != transposed;
      (towards_right ? right : left) = normalised(times(towards_right));
    }
    const Values product = times(false);
    for (std::size_t row = 0; row < product.size(); ++row) sigma += left[row] * product[row];
    double inner = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) inner += weight[i] * grad[i];
    for (std::size_t i = 0; i < weight.size(); ++i) {
      const double outer = left[i / static_cast<std::size_t>(cols)] * right[i % static_cast<std::size_t>(cols)];
      scaled.push_back(goal / sigma * weight[i]);
      grad_weight.push_back(goal / sigma * grad[i] + (grad_sigma - goal * inner / sigma / sigma) * outer);
    }
  }
};

int failures = 0;

template <typename T>
void compare(const char* what, const Case& c, const T* actual, const Values& expected, double tolerance) {
  double size = 0, error = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    size = std::fmax(size, std::fabs(expected[i]));
    const double difference = std::fabs(static_cast<double>(actual[i]) - expected[i]);
    if (!(difference <= error)) error = difference;
  }
  if (error <= tolerance * size) return;
  std::printf("%s of %ld x %ld: error %g, size %g\n", what, long(c.rows), long(c.cols), error, size);
  ++failures;
}

enum Way { cpu, one_launch, phases };

template <typename T>
void run(Way way, int n_iterations, int threads) {
  std::vector<Case> cases;
  const std::pair<int, int> shapes[] = {{1, 1}, {1, 33}, {33, 1}, {520, 35}, {3, 2060}, {70, 200}, {15, 17}};
  for (const bool transposed : {false, true}) {
    for (const auto& [rows, cols] : shapes) cases.emplace_back(rows, cols, transposed);
    if (threads > 1) cases.emplace_back(300, 301, transposed);  // large enough to be worth a thread each
  }
  Values goals = random_values(cases.size()), grad_sigmas = random_values(cases.size());
  std::vector<std::unique_ptr<T[]>> kept;
  const auto keep = [&](const Values& values) { return kept.emplace_back(copied<T>(values)).get(); };
  std::vector<Matrix> matrices;
  std::vector<Gradient> gradients;
  for (Case& c : cases) {
    const Values nothing(c.elements()), no_left(c.left.size()), no_right(c.right.size());
    T* const left = keep(c.left);
    T* const right = keep(c.right);
    const T* const weight = keep(c.weight);
    matrices.push_back({c.rows, c.cols, c.transposed, weight, left, right, keep(no_left), keep(no_right), keep(nothing)});
    gradients.push_back({c.rows, c.cols, weight, matrices.back().left_copy, matrices.back().right_copy, keep(c.grad),
                         keep(nothing)});
  }
  T* const sigma = keep(Values(cases.size()));
  const T* const goal = keep(goals);
  const T* const grad_sigma = keep(grad_sigmas);
#if !defined(__SANITIZE_THREAD__)
  if constexpr (sizeof(T) == 4) {
    if (way != cpu) {
      const auto launch = [&](std::size_t bytes) {
        void* const workspace = kept.emplace_back(new T[(bytes + 7) / 8 * 2]).get();
        return vitgan::cuda::Launch{0, nullptr, workspace, way == one_launch};
      };
      using vitgan::cuda::Dtype;
      vitgan::cuda::spectral_norm(matrices, Dtype::float32, goal, sigma, n_iterations, 1e-12,
                                  launch(vitgan::cuda::workspace_bytes(matrices)));
      vitgan::cuda::spectral_norm_backward(gradients, Dtype::float32, goal, sigma, grad_sigma,
                                           launch(vitgan::cuda::workspace_bytes(gradients)));
    }
  }
#endif
  if (way == cpu) {
    vitgan::spectral_norm<T>(matrices, goal, sigma, n_iterations, 1e-12, threads);
    vitgan::spectral_norm_backward<T>(gradients, goal, sigma, grad_sigma, threads);
  }
  // sigma of no iteration is a small difference of large sums, so its error is judged where there was one
  const double tolerance = sizeof(T) == 4 ? (n_iterations ? 2e-5 : 1e-2) : 1e-9;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    cases[i].compute(n_iterations, static_cast<double>(goal[i]), static_cast<double>(grad_sigma[i]));
    compare("left", cases[i], static_cast<T*>(matrices[i].left), cases[i].left, tolerance);
    compare("right copy", cases[i], static_cast<T*>(matrices[i].right_copy), cases[i].right, tolerance);
    compare("scaled", cases[i], static_cast<T*>(matrices[i].scaled), cases[i].scaled, tolerance);
    compare("gradient", cases[i], static_cast<T*>(gradients[i].grad_weight), cases[i].grad_weight, tolerance);
  }
}

}  // namespace

int main() {
  for (const int n_iterations : {0, 2}) {
    run<float>(cpu, n_iterations, 1);
    run<double>(cpu, n_iterations, 3);
#if !defined(__SANITIZE_THREAD__)
    run<float>(n_iterations ? one_launch : phases, n_iterations, 1);
#endif
  }
  std::printf("%d results disagree\n", failures);
  return failures ? 1 : 0;
}
